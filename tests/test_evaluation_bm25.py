import math

import numpy as np
import pytest

from nomic_jax.evaluation.bm25 import evaluate_bm25, rank_bm25
from nomic_jax.evaluation.retrieval import RetrievalTask

DOCUMENTS = ["Red fox", "red red house by blue river", "blue river", "green, the hill"]


def test_scores_follow_lucenes_formula():
    task = RetrievalTask("t", ["red"], DOCUMENTS, [(0,)])
    ranking = rank_bm25(task)
    # "by" and "the" are stop words: 2, 5, 2 and 2 words, 11 / 4 on average.
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))

    def score(count, length):
        return idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * length / (11 / 4)))

    assert ranking.documents[0].tolist() == [0, 1, 2, 3]
    # The library holds float32.
    np.testing.assert_allclose(
        ranking.scores[0], [score(1, 2), score(2, 5), 0, 0], rtol=1e-6
    )


def test_ties_keep_the_order_of_documents():
    documents = [f"word{n}" for n in range(30)]
    task = RetrievalTask("t", ["nothing", "word7"], documents, [(0,), (7,)])
    ranking = rank_bm25(task)
    assert ranking.documents[0].tolist() == list(range(30))
    assert ranking.documents[1].tolist() == [7, *range(7), *range(8, 30)]


@pytest.mark.parametrize("query", ["", "the of", "?!", "unknown words", "red"])
def test_a_query_or_corpus_without_words_scores_zero(query):
    task = RetrievalTask("t", [query], ["the", "?", "of"], [(2,)])
    ranking = rank_bm25(task)
    np.testing.assert_array_equal(ranking.documents, [[0, 1, 2]])
    np.testing.assert_array_equal(ranking.scores, 0)


def test_one_empty_query_does_not_change_the_others():
    task = RetrievalTask("t", ["", "hill", "by"], DOCUMENTS, [(0,), (3,), (1,)])
    assert rank_bm25(task, depth=1).documents.tolist() == [[0], [3], [0]]
    assert evaluate_bm25(task)["mrr@10"] == pytest.approx((1 + 1 + 1 / 2) / 3)


def test_it_is_silent(capfd):
    evaluate_bm25(RetrievalTask("t", ["red"], DOCUMENTS, [(0,)]))
    assert capfd.readouterr() == ("", "")
