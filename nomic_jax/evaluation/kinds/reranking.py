"""Reranking: a query's own candidates, answers and others, ordered by cosine.

As MTEB's reranking tasks (arXiv:2210.07316, section 3.2): both sides get the prompt of
classification, and mean average precision is the main figure.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax.evaluation.kinds.retrieval import ranking_metrics
from nomic_jax.evaluation.records import (
    Side,
    list_in,
    numbered,
    one_text,
    read_records,
    task_name,
    texts_in,
)


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
    left_out: int  # queries without a candidate that is no answer


def read_reranking(place: str) -> list[tuple[str, Reranking]]:
    """Read a file of `query`, `positive` and `negative`, the latter two lists.

    A text that is in both lists is an answer. A query whose candidates are all answers
    has nothing to be ordered, and is left out.

    Raises:
        ValueError: the file is missing or broken, or no query remains.
    """
    rows, left_out = [], 0
    for where, row in read_records(place):
        query = one_text(row, ("query",), where)
        positive = texts_in(row, "positive", where)
        negative = ()
        if list_in(row, "negative", where):
            negative = texts_in(row, "negative", where)
        if {*negative} <= {*positive}:
            left_out += 1
        else:
            rows.append((query, positive, negative))
    if not rows:
        raise ValueError(f"{place}: no query has a candidate that is no answer")
    number = numbered(text for _, *lists in rows for each in lists for text in each)
    candidates = []
    for _, positive, negative in rows:
        relevant = [number[text] for text in positive]
        # Equal scores keep this order: a tie is no merit.
        every = dict.fromkeys([number[text] for text in negative])
        ordered = [d for d in every if d not in relevant] + [*dict.fromkeys(relevant)]
        candidates.append(Candidates(ordered, frozenset(relevant)))
    queries = [query for query, _, _ in rows]
    task = Reranking(queries, tuple(number), candidates, left_out)
    return [(task_name(place), task)]


def sides(task: Reranking) -> tuple[Side, ...]:
    """Return the texts to embed: queries, documents."""
    return (
        Side(task.queries, "classification", False, "Reranking-query"),
        Side(task.documents, "classification", True, "Reranking-document"),
    )


def counts(task: Reranking) -> dict[str, int]:
    """Count what is measured."""
    found = {
        "queries": len(task.queries),
        "documents": len(task.documents),
        "candidates": sum(len(each.documents) for each in task.candidates),
    }
    if task.left_out:
        found["queries with answers alone left out"] = task.left_out
    return found


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
