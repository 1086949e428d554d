"""How good rankings are: nDCG, recall and reciprocal rank, computed by trec_eval.

pytrec_eval (Van Gysel and de Rijke 2018, arXiv:1805.01597) is what BEIR and MTEB use,
so figures can be set beside published ones.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int

from nomic_jax.evaluation.extras import extra

METRICS = {  # as results name them, and as people write them
    "ndcg@10": "nDCG@10",
    "recall@10": "Recall@10",
    "mrr@10": "MRR@10",
    "recall@100": "Recall@100",
}


def ranking_metrics(
    ranking: Int[np.ndarray, "Q k"], relevant: Sequence[Collection[int]]
) -> dict[str, float]:
    """Average each metric over all queries.

    Args:
        ranking: documents of each query by index, best first, none twice.
        relevant: the documents that answer each query, by index; all count the same.

    Returns:
        A value in [0, 1] for each name in `METRICS`.

    Raises:
        ValueError: a query lacks its ranking or its relevant documents.
    """
    answered = sum(map(bool, relevant))
    if not len(ranking) == len(relevant) == answered:
        raise ValueError(
            f"{len(ranking)} rankings for {len(relevant)} queries, {answered} of which "
            "have a relevant document; every query needs both"
        )
    judged = {
        str(query): {str(document): 1 for document in documents}
        for query, documents in enumerate(relevant)
    }
    full, ten = _run(ranking), _run(ranking[:, :10])
    return {
        "ndcg@10": _mean(judged, full, "ndcg_cut.10", "ndcg_cut_10"),
        "recall@10": _mean(judged, full, "recall.10", "recall_10"),
        # trec_eval's reciprocal rank looks at the whole run, so the run is cut.
        "mrr@10": _mean(judged, ten, "recip_rank", "recip_rank"),
        "recall@100": _mean(judged, full, "recall.100", "recall_100"),
    }


def _run(ranking: Int[np.ndarray, "Q k"]) -> dict[str, dict[str, float]]:
    """Write rankings as a run that trec_eval will not reorder.

    It sorts by score and breaks ties by document name, so the scores given here are
    ranks counted from the end, all different.
    """
    return {
        str(query): {str(document): float(-rank) for rank, document in enumerate(row)}
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
