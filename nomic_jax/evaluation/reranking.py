"""Reranking: a query's own candidates, answers and others, ordered by cosine.

As MTEB's reranking tasks (arXiv:2210.07316, section 3.2): both sides get the prompt of
classification, and mean average precision is the main figure.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax.evaluation.metrics import ranking_metrics
from nomic_jax.evaluation.records import one_text, read_records, task_name, texts_in
from nomic_jax.evaluation.sides import Side, numbered


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The documents of a query, by number, and those of them that answer it."""

    documents: Sequence[int]
    relevant: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Reranking:
    """Queries, all documents once, and each query's candidates."""

    queries: Sequence[str]
    documents: Sequence[str]
    candidates: Sequence[Candidates]


def read_reranking(place: str) -> list[tuple[str, Reranking]]:
    """Read a file of `query`, `positive` and `negative`, the latter two lists.

    A text that is in both lists is an answer.

    Raises:
        ValueError: the file is missing or broken, or a list is empty.
    """
    rows = []
    for where, row in read_records(place):
        query = one_text(row, ("query",), where)
        positive, negative = (texts_in(row, c, where) for c in ("positive", "negative"))
        rows.append((query, positive, negative))
    number = numbered(text for _, *lists in rows for each in lists for text in each)
    candidates = []
    for _, positive, negative in rows:
        relevant = [number[text] for text in positive]
        # Equal scores keep this order: a tie is no merit.
        every = dict.fromkeys([number[text] for text in negative])
        ordered = [d for d in every if d not in relevant] + [*dict.fromkeys(relevant)]
        candidates.append(Candidates(ordered, frozenset(relevant)))
    queries = [query for query, _, _ in rows]
    return [(task_name(place), Reranking(queries, tuple(number), candidates))]


def sides(task: Reranking) -> tuple[Side, ...]:
    """Return the texts to embed: queries, documents."""
    return (
        Side(task.queries, "classification", calibrates=False),
        Side(task.documents, "classification"),
    )


def counts(task: Reranking) -> dict[str, int]:
    """Count what is measured."""
    return {
        "queries": len(task.queries),
        "documents": len(task.documents),
        "candidates": sum(len(each.documents) for each in task.candidates),
    }


def score(
    task: Reranking,
    queries: Float32[np.ndarray, "Q E"],
    documents: Float32[np.ndarray, "M E"],
) -> dict[str, float]:
    """Order each query's candidates; of equal scores, answers come last.

    Returns:
        MAP over all candidates, and MRR and nDCG of the first ten.
    """
    depth = max(len(each.documents) for each in task.candidates)
    ranking = np.full((len(queries), depth), -1)
    for row, (query, each) in enumerate(zip(queries, task.candidates, strict=True)):
        chosen = np.array(each.documents)
        order = np.argsort(-(documents[chosen] @ query), kind="stable")
        ranking[row, : len(chosen)] = chosen[order]
    found = ranking_metrics(
        ranking,
        [each.relevant for each in task.candidates],
        metrics=(f"map@{depth}", "mrr@10", "ndcg@10"),
    )
    return {"map": found.pop(f"map@{depth}"), **found}
