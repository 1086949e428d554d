"""Retrieval: rank a task's documents for each query and compare with the right ones."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from nomic_jax.evaluation.metrics import ranking_metrics
from nomic_jax.search import nearest

DEPTH = 100  # documents ranked for each query

Encode = Callable[[Sequence[str]], Float[np.ndarray, "texts E"]]


@runtime_checkable
class TextPair(Protocol):
    """Anything that holds a query and a document that answers it."""

    @property
    def query(self) -> str:
        """The text searched with."""
        ...

    @property
    def document(self) -> str:
        """The text to be found."""
        ...


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """Queries, the documents to search, and which of them answer each query.

    Documents differ from one another: an equal text under two numbers cannot be told
    apart, and finding the other one would count as a failure.
    """

    name: str
    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[tuple[int, ...]]  # document numbers, for each query

    def __post_init__(self) -> None:
        """Refuse a task that cannot be measured.

        Raises:
            ValueError: with the task's name, and the numbers.
        """
        if not self.queries:
            raise ValueError(f"task {self.name!r} has no query")
        if len(self.queries) != len(self.relevant):
            raise ValueError(
                f"task {self.name!r} has {len(self.queries)} queries and relevant "
                f"documents for {len(self.relevant)}"
            )
        for number, documents in enumerate(self.relevant):
            if not documents:
                raise ValueError(
                    f"task {self.name!r}: query {number} has no relevant document; "
                    "leave it out"
                )
            for document in documents:
                if not 0 <= document < len(self.documents):
                    raise ValueError(
                        f"task {self.name!r}: query {number} names document "
                        f"{document}; there are {len(self.documents)}, from 0"
                    )
        first: dict[str, int] = {}
        for number, text in enumerate(self.documents):
            if (earlier := first.setdefault(text, number)) != number:
                repeated = len(self.documents) - len(set(self.documents))
                raise ValueError(
                    f"task {self.name!r}: documents {earlier} and {number} are the "
                    f"same text; {repeated} of {len(self.documents)} repeat "
                    "an earlier one, merge them"
                )


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best documents of each query, best first."""

    scores: Float32[np.ndarray, "Q k"]
    documents: Int[np.ndarray, "Q k"]  # their numbers in the task


def task_from_pairs(name: str, pairs: Iterable[TextPair]) -> RetrievalTask:
    """Make a task of pairs: every document is searched, and equal texts are one.

    A query that several pairs hold has all their documents as its answers. Order is
    that of first appearance.
    """
    documents: dict[str, int] = {}
    relevant: dict[str, dict[int, None]] = {}
    for pair in pairs:
        number = documents.setdefault(pair.document, len(documents))
        relevant.setdefault(pair.query, {})[number] = None
    return RetrievalTask(
        name, tuple(relevant), tuple(documents), tuple(map(tuple, relevant.values()))
    )


def rank(
    task: RetrievalTask,
    encode_query: Encode,
    encode_document: Encode,
    *,
    depth: int = DEPTH,
) -> Ranking:
    """Rank documents by the inner product of embeddings, ties by lower number.

    Args:
        task: what to search for what.
        encode_query: texts to rows, of unit length where cosine is meant.
        encode_document: the same for documents.
        depth: documents ranked; all of them where there are fewer.
    """
    scores, documents = nearest(
        _embed(task.queries, encode_query, f"queries of task {task.name!r}"),
        _embed(task.documents, encode_document, f"documents of task {task.name!r}"),
        k=min(depth, len(task.documents)),
    )
    return Ranking(scores, documents)


def evaluate(
    task: RetrievalTask, encode_query: Encode, encode_document: Encode
) -> dict[str, float]:
    """Measure how well embeddings retrieve.

    Returns:
        A value in [0, 1] for each of `metrics.METRICS`, averaged over queries.
    """
    ranking = rank(task, encode_query, encode_document)
    return ranking_metrics(ranking.documents, task.relevant)


def _embed(
    texts: Sequence[str], encode: Encode, what: str
) -> Float[np.ndarray, "texts E"]:
    """Encode texts and make sure that each has its row.

    Raises:
        ValueError: the rows are not as many as the texts.
    """
    embeddings = encode(texts)
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        raise ValueError(
            f"encoding {len(texts)} {what} gave an array of shape {embeddings.shape}; "
            f"({len(texts)}, dim) is needed"
        )
    return embeddings
