"""The mine stage: each training pair gets documents that only look like its answer."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from nomic_jax.curation.hard_negatives import MarginKind, TooFew, check_margin, mine
from nomic_jax.curation.stage_pairs import StagePairs
from nomic_jax.sources.pairs import Pair

Encode: TypeAlias = Callable[[Sequence[str]], np.ndarray]  # texts to unit rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mining:
    """Which documents become hard negatives of a query."""

    # Folder or hub id of what embeds them, with its own search prefixes. Empty: the
    # model that the run has trained so far, with the prefixes of each source.
    model: str = ""
    count: int  # negatives written for each query
    pool: int = 20  # nearest allowed documents they are drawn from
    margin: float | None = 0.95  # drop those above this share of the answer's score
    margin_kind: MarginKind = "ratio"  # absolute: above the score less the margin
    # of the nearest below the margin: random documents fill up, or the pair goes
    too_few: TooFew = "fill"
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        """Refuse a draw that cannot be made, before any model is trained for it.

        Raises:
            ValueError: the numbers do not fit one another.
        """
        if not 1 <= self.count <= self.pool:
            raise ValueError(
                f"count={self.count} negatives are drawn from pool={self.pool} "
                "documents: 1 <= count <= pool is needed"
            )
        check_margin(self.margin, self.margin_kind)
        if self.too_few not in ("fill", "drop"):
            raise ValueError(f"too_few={self.too_few!r} must be fill or drop")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineStage:
    """Find hard negatives, and tokenise the pairs with them."""

    name: str
    data: StagePairs
    mining: Mining


def mined_pairs(
    pairs: Sequence[Pair],
    encode_query: Encode,
    encode_document: Encode,
    mining: Mining,
    *,
    name: str,
    corpus: Sequence[str] = (),
) -> list[Pair]:
    """Give pairs hard negatives out of their own documents and those of a corpus.

    Pairs that share a query share its negatives; no answer of any is among them, nor a
    document that reads like the query. Negatives that pairs had are replaced.

    Args:
        pairs: queries may stand in several.
        encode_query: gets each query once.
        encode_document: gets each document once.
        mining: which documents are taken.
        name: of the source, for errors.
        corpus: further documents, which answer no query.

    Returns:
        The pairs in their order, without those that `too_few` drops.

    Raises:
        ValueError: there are too few documents, or every pair was dropped.
    """
    documents = list(dict.fromkeys([*(pair.document for pair in pairs), *corpus]))
    place = {document: i for i, document in enumerate(documents)}
    answers: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        answers[pair.query].add(place[pair.document])
    queries = list(answers)
    excluded = [[place[query]] if query in place else [] for query in queries]
    most = max(map(len, answers.values()))
    if mining.too_few == "fill" and len(documents) - most < mining.count:
        raise ValueError(
            f"source {name!r} has {len(documents)} documents, of which {most} "
            f"answer one query; {mining.count} others are needed as its negatives: "
            "lower count or give more pairs"
        )
    found = mine(
        encode_query(queries),
        encode_document(documents),
        [sorted(answers[query]) for query in queries],
        count=mining.count,
        pool=mining.pool,
        margin=mining.margin,
        margin_kind=mining.margin_kind,
        too_few=mining.too_few,
        seed=mining.seed,
        excluded=excluded,
    )
    negatives = {
        query: tuple(documents[i] for i in row)
        for query, row in zip(queries, found, strict=True)
        if row[0] >= 0
    }
    if not negatives:
        raise ValueError(
            f"source {name!r}: no query has {mining.count} documents below the margin "
            f"{mining.margin} among its nearest, so too_few='drop' leaves no pair; "
            "lower count or the margin's demand"
        )
    return [
        dataclasses.replace(pair, negatives=negatives[pair.query])
        for pair in pairs
        if pair.query in negatives
    ]
