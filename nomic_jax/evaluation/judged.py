"""Retrieval with graded judgments: queries, a corpus, and how good each answer is.

The protocol is BEIR's (Thakur et al. 2021, arXiv:2104.08663): every query ranks the
whole corpus by cosine, and a document that is the query itself is no answer.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int

from nomic_jax.evaluation.metrics import ranking_metrics
from nomic_jax.evaluation.retrieval import DEPTH
from nomic_jax.evaluation.sides import Side
from nomic_jax.search import nearest

NONE = -1  # in place of a document


@dataclasses.dataclass(frozen=True)
class JudgedRetrieval:
    """Queries that have an answer, the documents, and the judgments."""

    queries: Sequence[str]
    documents: Sequence[str]  # that hold a visible character
    relevance: Sequence[Mapping[int, int]]  # of each query: grade by document number
    own: Sequence[int]  # the document that is the query itself, or NONE
    left_out: Mapping[str, int]  # how many of what
    query_prompt: str = "search_query"
    document_prompt: str = "search_document"


def judge(
    place: str,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    judgments: Mapping[str, Mapping[str, int]],
    *,
    same_id: str = "auto",
    query_prompt: str = "search_query",
    document_prompt: str = "search_document",
) -> JudgedRetrieval:
    """Put a task together from texts and judgments by id.

    Left out, and counted: queries that no relevant document is known for, and blank
    documents, which have no embedding; a query that a blank one answers misses it.

    Args:
        place: of the task, for errors to begin with.
        queries: texts by id.
        documents: texts by id.
        judgments: grades by document id, by query id; above 0 is relevant.
        same_id: `exclude` takes a document with the query's own id out of its ranking,
            `keep` does not; `auto` does where ids are of one space: at least half of
            the documents that share a query's id hold the query's text.
        query_prompt: name of the prompt of queries.
        document_prompt: name of the prompt of documents.

    Raises:
        ValueError: no document or no query remains, or a query is blank.
    """
    there = {name: text for name, text in documents.items() if text.strip()}
    if not there:
        raise ValueError(f"{place}: the corpus holds no document with text")
    blank = [name for name in documents if name not in there]
    # Blank ones are numbered behind the others: they are judged, and never found.
    number = {name: i for i, name in enumerate([*there, *blank])}
    kept = [q for q in queries if any(g > 0 for g in judgments.get(q, {}).values())]
    if not kept:
        raise ValueError(f"{place}: no query has a relevant document")
    for name in kept:
        if not queries[name].strip():
            raise ValueError(f"{place}: query {name!r} is blank; give it text")
    exclude = same_id == "exclude" or (
        same_id == "auto" and _one_space(queries, there, kept)
    )
    return JudgedRetrieval(
        queries=tuple(queries[name] for name in kept),
        documents=tuple(there.values()),
        relevance=tuple(
            {number[document]: grade for document, grade in judgments[name].items()}
            for name in kept
        ),
        own=tuple(number[name] if exclude and name in there else NONE for name in kept),
        left_out={
            "queries without a relevant document": len(queries) - len(kept),
            "blank documents": len(blank),
        },
        query_prompt=query_prompt,
        document_prompt=document_prompt,
    )


def _one_space(
    queries: Mapping[str, str], documents: Mapping[str, str], kept: Sequence[str]
) -> bool:
    """Whether queries and documents of the same id are the same texts."""
    shared = [name for name in kept if name in documents]
    same = sum(queries[name].strip() in documents[name] for name in shared)
    return bool(shared) and 2 * same >= len(shared)


def sides(task: JudgedRetrieval) -> tuple[Side, ...]:
    """Return the texts to embed: queries, documents."""
    return (
        Side(task.queries, task.query_prompt, calibrates=False),
        Side(task.documents, task.document_prompt),
    )


def counts(task: JudgedRetrieval) -> dict[str, int]:
    """Count what is measured, and what is left out."""
    found = {"queries": len(task.queries), "documents": len(task.documents)}
    found["judgments"] = sum(map(len, task.relevance))
    if excluded := sum(own != NONE for own in task.own):
        found["queries that are documents too"] = excluded
    return found | {what: n for what, n in task.left_out.items() if n}


def score(
    task: JudgedRetrieval,
    queries: Float32[np.ndarray, "Q E"],
    documents: Float32[np.ndarray, "M E"],
) -> dict[str, float]:
    """Rank all documents for each query, ties by their order in the corpus.

    Returns:
        A value in [0, 1] for each of `metrics.METRICS`, averaged over queries.
    """
    own = np.array(task.own)[:, None]
    depth = DEPTH + bool((own != NONE).any())
    _, ranking = nearest(queries, documents, k=min(depth, len(documents)))
    return ranking_metrics(_without(ranking, own)[:, :DEPTH], task.relevance)


def _without(
    ranking: Int[np.ndarray, "Q k"], own: Int[np.ndarray, "Q 1"]
) -> Int[np.ndarray, "Q k"]:
    """Take each query's own document out; what stood below it moves up."""
    is_own = ranking == own
    order = np.argsort(is_own, axis=1, kind="stable")
    moved = np.take_along_axis(ranking, order, axis=1)
    moved[is_own.any(axis=1), -1] = NONE
    return moved
