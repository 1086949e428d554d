"""Retrieval with graded judgments: queries, a corpus, and how good the rankings are.

The protocol is BEIR's (Thakur et al. 2021, arXiv:2104.08663): every query ranks the
whole corpus by cosine, and a document that is the query itself is no answer. nDCG,
recall, precision and reciprocal rank are pytrec_eval's (Van Gysel and de Rijke 2018,
arXiv:1805.01597), as in BEIR and MTEB, so they can be compared with published ones.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32

from nomic_jax.data.sources.pairs import Pair
from nomic_jax.evaluation.records import Side, extra
from nomic_jax.inference.search import top_k

METRICS = {  # as results name them, and as people write them
    "ndcg@10": "nDCG@10",
    "recall@10": "Recall@10",
    "mrr@10": "MRR@10",
    "map@100": "MAP@100",
    "recall@100": "Recall@100",
}
# trec_eval's own names; its reciprocal rank looks at the whole run, so that is cut.
_MEASURES = {
    "ndcg": "ndcg_cut",
    "recall": "recall",
    "map": "map_cut",
    "mrr": "recip_rank",
}


def ranking_metrics(
    ranking: Int[np.ndarray, "Q k"],
    relevant: Sequence[Collection[int] | Mapping[int, int]],
    *,
    metrics: Collection[str] = tuple(METRICS),
) -> dict[str, float]:
    """Average each metric over all queries.

    Args:
        ranking: documents of each query by index, best first, none twice but -1, which
            stands for no document.
        relevant: the documents that answer each query, by index; all count the same
            unless their grades are given. Without one graded above 0 a query scores 0.
        metrics: what to compute: ndcg, recall, map or mrr, `@` and the depth.

    Returns:
        A value in [0, 1] for each metric.

    Raises:
        ValueError: a query lacks its ranking or its judged documents.
    """
    grades = [_grades(each) for each in relevant]
    judged_queries = sum(map(bool, grades))
    if not len(ranking) == len(relevant) == judged_queries:
        raise ValueError(
            f"{len(ranking)} rankings for {len(relevant)} queries, {judged_queries} of "
            "which have a judged document; every query needs both"
        )
    judged = {str(query): each for query, each in enumerate(grades)}
    found = {}
    for metric in metrics:
        name, _, depth = metric.partition("@")
        run = _run(ranking[:, : int(depth)] if name == "mrr" else ranking)
        suffix = ("", "") if name == "mrr" else (f".{depth}", f"_{depth}")
        measure, result = (_MEASURES[name] + end for end in suffix)
        found[metric] = _mean(judged, run, measure, result)
    return found


def _grades(relevant: Collection[int] | Mapping[int, int]) -> dict[str, int]:
    if isinstance(relevant, Mapping):
        return {str(document): grade for document, grade in relevant.items()}
    return {str(document): 1 for document in relevant}


def _run(ranking: Int[np.ndarray, "Q k"]) -> dict[str, dict[str, float]]:
    """Write rankings as a run that trec_eval will not reorder.

    It sorts by score and breaks ties by document name, so the scores given here are
    ranks counted from the end, all different.
    """
    return {
        str(query): {
            str(document): float(-rank)
            for rank, document in enumerate(row)
            if document >= 0
        }
        for query, row in enumerate(ranking.tolist())
    }


def _mean(
    judged: dict[str, dict[str, int]],
    run: dict[str, dict[str, float]],
    measure: str,
    name: str,
) -> float:
    """Average one of trec_eval's measures over the judged queries."""
    evaluator = extra("pytrec_eval").RelevanceEvaluator(judged, {measure})
    results = evaluator.evaluate(run)
    return float(np.mean([results[query][name] for query in judged]))


DEPTH = 100  # documents ranked for each query
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
    same_text: Collection[str] = (),
    query_prompt: str = "search_query",
    document_prompt: str = "search_document",
) -> JudgedRetrieval:
    """Put a task together from texts and judgments by id.

    Left out, and counted: queries that nothing is judged for, and blank documents,
    which have no embedding; a query that a blank one answers misses it. A query whose
    judged documents are all irrelevant scores 0, as in BEIR.

    Args:
        place: of the task, for errors to begin with.
        queries: texts by id.
        documents: texts by id.
        judgments: grades by document id, by query id; above 0 is relevant.
        same_id: `exclude` takes a document with the query's own id out of its ranking,
            `keep` does not; `auto` does where ids are of one space: at least half of
            the documents that share a query's id are in `same_text`. It keeps those
            that answer their query.
        same_text: ids of which query and document are the same text.
        query_prompt: name of the prompt of queries.
        document_prompt: name of the prompt of documents.

    Raises:
        ValueError: no document or no query remains, a query is blank, or an answer
            would be excluded.
    """
    there = {name: text for name, text in documents.items() if text.strip()}
    if not there:
        raise ValueError(f"{place}: the corpus holds no document with text")
    blank = [name for name in documents if name not in there]
    # Blank ones are numbered behind the others: they are judged, and never found.
    number = {name: i for i, name in enumerate([*there, *blank])}
    kept = [name for name in queries if judgments.get(name)]
    answered = [name for name in kept if max(judgments[name].values()) > 0]
    if not answered:
        raise ValueError(f"{place}: no query has a relevant document")
    for name in kept:
        if not queries[name].strip():
            raise ValueError(f"{place}: query {name!r} is blank; give it text")
    shared = [name for name in kept if name in there]
    answers = {name for name in shared if judgments[name].get(name, 0) > 0}
    if answers and same_id == "exclude":
        raise ValueError(
            f"{place}: {len(answers)} queries, {min(answers)!r} among them, are "
            "answered by the document of their own id, which same_id='exclude' takes "
            "out; set it to 'keep'"
        )
    one_space = 2 * sum(name in same_text for name in shared) >= len(shared)
    exclude = same_id == "exclude" or (same_id == "auto" and one_space)
    excluded = {*shared} - answers if exclude else set[str]()
    return JudgedRetrieval(
        queries=tuple(queries[name] for name in kept),
        documents=tuple(there.values()),
        relevance=tuple(
            {number[document]: grade for document, grade in judgments[name].items()}
            for name in kept
        ),
        own=tuple(number[name] if name in excluded else NONE for name in kept),
        left_out={
            "queries without judgments left out": len(queries) - len(kept),
            "blank documents left out": len(blank),
        },
        query_prompt=query_prompt,
        document_prompt=document_prompt,
    )


def from_pairs(
    pairs: Iterable[Pair],
    *,
    query_prompt: str = "search_query",
    document_prompt: str = "search_document",
) -> JudgedRetrieval:
    """Make a task of pairs: every document is searched, and equal texts are one.

    A query that several pairs hold has all their documents as its answers. Order is
    that of first appearance.
    """
    documents: dict[str, int] = {}
    relevance: dict[str, dict[int, int]] = {}
    for pair in pairs:
        number = documents.setdefault(pair.document, len(documents))
        relevance.setdefault(pair.query, {})[number] = 1
    return JudgedRetrieval(
        queries=tuple(relevance),
        documents=tuple(documents),
        relevance=tuple(relevance.values()),
        own=(NONE,) * len(relevance),
        left_out={},
        query_prompt=query_prompt,
        document_prompt=document_prompt,
    )


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
    if missing := sum(not any(g > 0 for g in r.values()) for r in task.relevance):
        found["queries without a relevant document"] = missing
    if excluded := sum(own != NONE for own in task.own):
        found["queries that are documents too"] = excluded
    return found | {what: n for what, n in task.left_out.items() if n}


def score(
    task: JudgedRetrieval,
    queries: Float32[np.ndarray, "Q E"],
    documents: Float32[np.ndarray, "M E"],
) -> dict[str, float]:
    """Rank all documents for each query.

    Equal scores, frequent of binary codes, are ordered as `tie_order` has it: in the
    corpus's own order, answers that stand first would win by their place.

    Returns:
        A value in [0, 1] for each of `metrics.METRICS`, averaged over queries.
    """
    depth = min(DEPTH + bool(np.max(task.own) != NONE), len(documents))
    order = tie_order(len(documents))
    _, places = top_k(queries, documents[order], k=depth)
    return ranking_metrics(without_own(order[places], task.own), task.relevance)


def tie_order(documents: int) -> Int32[np.ndarray, "documents"]:
    """Shuffle the numbers of documents, always alike."""
    return np.random.default_rng(0).permutation(documents).astype(np.int32)


def without_own(
    ranking: Int[np.ndarray, "Q k"], own: Sequence[int]
) -> Int[np.ndarray, "Q depth"]:
    """Take each query's own document out, and what is below the depth of a ranking."""
    is_own = ranking == np.array(own)[:, None]
    order = np.argsort(is_own, axis=1, kind="stable")
    moved = np.take_along_axis(ranking, order, axis=1)
    moved[is_own.any(axis=1), -1] = NONE
    return moved[:, :DEPTH]
