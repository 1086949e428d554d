import math
import sys

import numpy as np
import pytest

from nomic_jax.evaluation.kinds.retrieval import METRICS, ranking_metrics


def by_definition(ranking, relevant):
    """Each metric of one query, from its definition."""
    gains = [document in relevant for document in ranking]
    found = sum(g / math.log2(rank + 2) for rank, g in enumerate(gains[:10]))
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant))))
    return {
        "ndcg@10": found / ideal,
        "recall@10": sum(gains[:10]) / len(relevant),
        "mrr@10": 1 / (gains.index(True) + 1) if True in gains[:10] else 0.0,
        "map@100": sum(
            sum(gains[: rank + 1]) / (rank + 1)
            for rank, g in enumerate(gains[:100])
            if g
        )
        / len(relevant),
        "recall@100": sum(gains[:100]) / len(relevant),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depth", [3, 40, 150])
def test_metrics_follow_their_definitions(seed, depth):
    random = np.random.default_rng(seed)
    ranking = np.stack([random.permutation(200)[:depth] for _ in range(20)])
    relevant = [
        tuple(random.choice(200, random.integers(1, 15), replace=False).tolist())
        for _ in range(20)
    ]
    expected = [
        by_definition(r.tolist(), a) for r, a in zip(ranking, relevant, strict=True)
    ]
    got = ranking_metrics(ranking, relevant)
    assert list(got) == list(METRICS)
    for name, value in got.items():
        # Both are float64 means of 20; trec_eval's logarithms may differ in an ulp.
        assert value == pytest.approx(np.mean([e[name] for e in expected]), abs=1e-12)


@pytest.mark.parametrize("place", [0, 1, 4, 9])
def test_the_given_order_is_kept_whatever_the_document_numbers(place):
    # trec_eval breaks ties by document name, from the last one on.
    for order in (np.arange(12), np.arange(12)[::-1]):
        metrics = ranking_metrics(order[None], [(int(order[place]),)])
        assert metrics["mrr@10"] == pytest.approx(1 / (place + 1))


def test_a_query_without_judged_documents_is_refused():
    with pytest.raises(
        ValueError, match="2 rankings for 2 queries, 1 of which have a judged"
    ):
        ranking_metrics(np.zeros((2, 1), int), [(0,), ()])


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(ValueError, match='pip install "nomic-jax\\[eval\\]"') as error:
        ranking_metrics(np.zeros((1, 1), int), [(0,)])
    assert "needs pytrec_eval" in str(error.value)
