import numpy as np
import pytest
import pytrec_eval

from nomic_jax.data.sources.pairs import Pair
from nomic_jax.evaluation.kinds.retrieval import (
    METRICS,
    NONE,
    JudgedRetrieval,
    from_pairs,
    score,
    sides,
)


def task(relevance, documents, own=None):
    queries = [f"q{i}" for i in range(len(relevance))]
    texts = [f"d{i}" for i in range(documents)]
    return JudgedRetrieval(queries, texts, relevance, own or [NONE] * len(queries), {})


def by_trec_eval(scores, relevance, measures):
    """pytrec_eval on all scores, as BEIR and MTEB call it."""
    judged = {
        str(q): {str(d): g for d, g in each.items()} for q, each in enumerate(relevance)
    }
    run = {
        str(q): {str(d): float(s) for d, s in enumerate(row) if s > -np.inf}
        for q, row in enumerate(scores)
    }
    found = pytrec_eval.RelevanceEvaluator(judged, set(measures)).evaluate(run)
    names = [measure.replace(".", "_") for measure in measures]
    return [np.mean([each[name] for each in found.values()]) for name in names]


@pytest.mark.parametrize("seed", range(3))
def test_graded_figures_are_those_of_trec_eval_on_all_scores(seed):
    random = np.random.default_rng(seed)
    queries = random.normal(size=(12, 8)).astype(np.float32)
    documents = random.normal(size=(150, 8)).astype(np.float32)
    relevance = [
        {int(d): int(random.integers(1, 4)) for d in random.choice(150, 6)} | {151: 1}
        for _ in queries
    ]
    # Queries 0 to 3 are documents themselves, and would find themselves first.
    documents[:4] = queries[:4] * 2
    own = [0, 1, 2, 3, *[NONE] * 8]
    found = score(task(relevance, 150, own), queries, documents)
    scores = queries @ documents.T
    scores[range(4), range(4)] = -np.inf
    measures = ("ndcg_cut.10", "recall.10", "map_cut.100", "recall.100")
    expected = by_trec_eval(scores, relevance, measures)
    names = ("ndcg@10", "recall@10", "map@100", "recall@100")
    # The same library on the same order: its sums round the same way.
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-12)
    assert list(found) == list(METRICS)


def test_equal_texts_of_pairs_are_one_query_and_one_document():
    pairs = [Pair("q", "a"), Pair("r", "a"), Pair("q", "b"), Pair("q", "a")]
    found = from_pairs(pairs, query_prompt="clustering")
    assert found.queries == ("q", "r")
    assert found.documents == ("a", "b")
    assert found.relevance == ({0: 1, 1: 1}, {0: 1})
    assert [side.prompt for side in sides(found)] == ["clustering", "search_document"]


@pytest.mark.parametrize("first", [0, 980])
def test_a_model_that_tells_nothing_apart_is_as_good_as_chance(first):
    # Twenty queries, whose answers stand first in the corpus, or last.
    relevance = [{first + i: 1} for i in range(20)]
    found = score(
        task(relevance, 1000), *(np.zeros((n, 2), np.float32) for n in (20, 1000))
    )
    # All rankings are the same: at most ten answers are among the first ten, and of
    # a thousand shuffled documents more than two of the twenty are with odds of 1e-3.
    assert found["recall@10"] <= 2 / 20
    assert found == score(
        task(relevance, 1000), *(np.ones((n, 2), np.float32) for n in (20, 1000))
    )


def test_a_query_with_irrelevant_judgments_alone_counts_as_zero():
    rows = np.eye(3, dtype=np.float32)
    found = score(task([{0: 1}, {1: 0}], 3), rows[:2], rows)
    assert found["ndcg@10"] == found["mrr@10"] == 1 / 2
    (expected,) = by_trec_eval(rows[:2] @ rows.T, [{0: 1}, {1: 0}], ("ndcg_cut.10",))
    assert found["ndcg@10"] == expected


def test_a_query_that_is_a_document_still_ranks_a_hundred_others():
    cosine = np.linspace(1, 0, 101, dtype=np.float32)
    documents = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    found = score(task([{100: 1}], 101, [0]), documents[:1], documents)
    assert found["recall@100"] == 1.0
    assert found["map@100"] == pytest.approx(1 / 100)


def test_a_query_does_not_find_itself_among_few_documents_either():
    rows = np.eye(2, dtype=np.float32)
    found = score(task([{0: 1, 1: 1}], 2, [0]), rows[:1], rows)
    assert found["mrr@10"] == 1.0
    assert found["recall@10"] == 1 / 2
