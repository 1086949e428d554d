"""The mine stage: each training pair gets documents that only look like its answer."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

from nomic_jax.curation.hard_negatives import MarginKind, TooFew, check_margin, mine
from nomic_jax.curation.stage_pairs import StagePairs
from nomic_jax.sources.pairs import Pair


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
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
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
        if self.blank not in ("error", "drop"):
            raise ValueError(f"blank={self.blank!r} must be error or drop")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineStage:
    """Find hard negatives, and tokenise the pairs with them."""

    name: str
    data: StagePairs
    mining: Mining


@dataclasses.dataclass(frozen=True)
class Texts:
    """The distinct texts of pairs, and which documents are no negatives of a query."""

    queries: list[str]
    documents: list[str]
    answers: list[list[int]]  # of each query, by number
    alike: list[list[int]]  # of each query: read like it, or like one of its answers


def distinct_texts(
    pairs: Sequence[Pair], mining: Mining, *, name: str, corpus: Sequence[str] = ()
) -> Texts:
    """Number the texts of pairs and of a corpus.

    Texts read alike when they differ in capitals and spaces only.

    Args:
        pairs: queries may stand in several.
        mining: how many negatives each query needs.
        name: of the source, for errors.
        corpus: further documents, which answer no query.

    Raises:
        ValueError: a query has too few documents that could be its negatives.
    """
    documents = list(dict.fromkeys([*(pair.document for pair in pairs), *corpus]))
    place, readings = {}, defaultdict(list)
    for number, document in enumerate(documents):
        place[document] = number
        readings[_reading(document)].append(number)
    answers: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        answers[pair.query].add(place[pair.document])
    alike = []
    for query, own in answers.items():
        read = {_reading(query), *(_reading(documents[i]) for i in own)}
        same = {i for reading in read for i in readings.get(reading, ())} | own
        left = len(documents) - len(same)
        if mining.too_few == "fill" and left < mining.count:
            raise ValueError(
                f"source {name!r} has {len(documents)} documents, of which {left} "
                f"could be negatives of {query[:60]!r}; {mining.count} are needed: "
                "lower count or give more pairs"
            )
        alike.append(sorted(same))
    return Texts(list(answers), documents, [sorted(a) for a in answers.values()], alike)


def _reading(text: str) -> str:
    return " ".join(text.casefold().split())


def mined_pairs(
    pairs: Sequence[Pair],
    texts: Texts,
    query_embeddings: Float32[np.ndarray, "Q E"],
    document_embeddings: Float32[np.ndarray, "M E"],
    mining: Mining,
    *,
    name: str,
) -> list[Pair]:
    """Give pairs hard negatives out of their own documents and those of a corpus.

    Pairs that share a query share its negatives; no answer of any is among them, nor a
    document that reads like one or like the query. Negatives that pairs had are
    replaced.

    Args:
        pairs: in any order.
        texts: of these pairs, as `distinct_texts` numbers them.
        query_embeddings: unit rows.
        document_embeddings: unit rows.
        mining: which documents are taken.
        name: of the source, for errors.

    Returns:
        The pairs in their order, without those that `too_few` drops.

    Raises:
        ValueError: every pair was dropped.
    """
    found = mine(
        query_embeddings,
        document_embeddings,
        texts.answers,
        count=mining.count,
        pool=mining.pool,
        margin=mining.margin,
        margin_kind=mining.margin_kind,
        too_few=mining.too_few,
        seed=mining.seed,
        excluded=texts.alike,
    )
    negatives = {
        query: tuple(texts.documents[i] for i in row)
        for query, row in zip(texts.queries, found, strict=True)
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
