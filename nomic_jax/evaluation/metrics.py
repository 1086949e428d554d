"""How good rankings are: nDCG, recall, precision and reciprocal rank, by trec_eval.

pytrec_eval (Van Gysel and de Rijke 2018, arXiv:1805.01597) is what BEIR and MTEB use,
so figures can be set beside published ones.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from nomic_jax.evaluation.extras import extra

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
