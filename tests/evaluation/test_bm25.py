import math

import numpy as np
import pytest

from nomic_jax.evaluation.bm25 import evaluate_bm25, rank_bm25
from nomic_jax.evaluation.kinds.retrieval import NONE, JudgedRetrieval

DOCUMENTS = ["Red fox", "red red house by blue river", "blue river", "green, the hill"]


def test_scores_follow_lucenes_formula():
    ranking = rank_bm25(["red"], DOCUMENTS)
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
    ranking = rank_bm25(["nothing", "word7"], documents)
    assert ranking.documents[0].tolist() == list(range(30))
    assert ranking.documents[1].tolist() == [7, *range(7), *range(8, 30)]


@pytest.mark.parametrize("query", ["", "the of", "?!", "unknown words", "red"])
def test_a_query_or_corpus_without_words_scores_zero(query):
    ranking = rank_bm25([query], ["the", "?", "of"])
    np.testing.assert_array_equal(ranking.documents, [[0, 1, 2]])
    np.testing.assert_array_equal(ranking.scores, 0)


def test_one_empty_query_does_not_change_the_others():
    queries = ["", "hill", "by"]
    assert rank_bm25(queries, DOCUMENTS, depth=1).documents.tolist() == [[0], [3], [0]]


def test_it_is_measured_as_embeddings_are_and_silent(capfd):
    documents = ["red", "red", *(f"word{n}" for n in range(998))]
    queries = ["word7", "red", "nothing"]
    # The second query is document 1 itself; the third ties with all of them.
    task = JudgedRetrieval(
        queries, documents, [{9: 1}, {0: 1, 1: 1}, {0: 1}], [NONE, 1, NONE], {}
    )
    assert evaluate_bm25(task)["mrr@10"] == pytest.approx((1 + 1 + 0) / 3)
    assert capfd.readouterr() == ("", "")
