"""The mine stage: each training pair gets documents that only look like its answer."""

import dataclasses
from collections import defaultdict
from pathlib import Path

from nomic_jax.curation.hard_negatives import mine
from nomic_jax.embedder import Embedder
from nomic_jax.sources.pairs import PairSource, fingerprint
from nomic_jax.store.corpus import write_sources, write_training_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineData:
    """The pairs that get negatives."""

    stage: str  # the prepare stage whose training pairs these are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mining:
    """Which documents become hard negatives of a query."""

    count: int  # negatives written for each query
    pool: int = 20  # nearest allowed documents they are drawn from
    margin: float | None = 0.95  # drop those above this share of the answer's score
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
        if self.margin is not None and not 0 < self.margin <= 1:
            raise ValueError(f"margin={self.margin} must be in (0, 1], or None")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineStage:
    """Find hard negatives with the encoder that the stage before left."""

    name: str
    data: MineData
    mining: Mining


def with_negatives(
    source: PairSource, embedder: Embedder, mining: Mining
) -> PairSource:
    """Give every pair of a source hard negatives out of the source's own documents.

    Pairs that share a query share its negatives, and no answer of any is among them.

    Raises:
        ValueError: the source has too few documents, or prefixes of no task.
    """
    documents = list(dict.fromkeys(pair.document for pair in source.pairs))
    place = {document: i for i, document in enumerate(documents)}
    answers: dict[str, set[int]] = defaultdict(set)
    for pair in source.pairs:
        answers[pair.query].add(place[pair.document])
    queries = list(answers)
    encode_query, encode_document = embedder.encoders(
        source.query_prefix, source.document_prefix
    )
    most = max(map(len, answers.values()))
    if len(documents) - most < mining.count:
        raise ValueError(
            f"source {source.name!r} has {len(documents)} documents, of which {most} "
            f"answer one query; {mining.count} others are needed as its negatives: "
            "lower count or give more pairs"
        )
    found = mine(
        encode_query(queries, progress=True),
        encode_document(documents, progress=True),
        [sorted(answers[query]) for query in queries],
        count=mining.count,
        pool=mining.pool,
        margin=mining.margin,
        seed=mining.seed,
    )
    negatives = {
        query: tuple(documents[i] for i in row)
        for query, row in zip(queries, found, strict=True)
    }
    pairs = [
        dataclasses.replace(pair, negatives=negatives[pair.query])
        for pair in source.pairs
    ]
    return dataclasses.replace(source, pairs=pairs)


def mine_negatives(
    sources: tuple[PairSource, ...],
    embedder: Embedder,
    mining: Mining,
    folder: Path,
    *,
    query_length: int,
    document_length: int,
) -> None:
    """Mine all sources and write them as the prepare stage writes its own."""
    mined = [with_negatives(source, embedder, mining) for source in sources]
    write_training_pairs(
        folder,
        mined,
        embedder.tokenizer,
        query_length=query_length,
        document_length=document_length,
        num_negatives=mining.count,
    )
    write_sources(folder, mined, fingerprint=fingerprint(mined))
