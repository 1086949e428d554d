import types

import numpy as np
import pytest

from nomic_jax.evaluation.retrieval import (
    RetrievalTask,
    evaluate,
    rank,
    task_from_pairs,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letter_counts(texts):
    return np.array([[text.count(c) for c in LETTERS] for text in texts], np.float32)


def pair(query, document):
    return types.SimpleNamespace(query=query, document=document)


def test_equal_texts_of_pairs_are_one_query_and_one_document():
    pairs = [pair("q", "a"), pair("r", "a"), pair("q", "b"), pair("q", "a")]
    task = task_from_pairs("letters", pairs)
    assert task.queries == ("q", "r")
    assert task.documents == ("a", "b")
    assert task.relevant == ((0, 1), (0,))


def test_queries_find_the_documents_nearest_to_them():
    task = RetrievalTask("letters", ["a", "b"], ["bbb", "zaz", "c"], [(1,), (0,)])
    ranking = rank(task, letter_counts, letter_counts)
    np.testing.assert_array_equal(ranking.documents, [[1, 0, 2], [0, 1, 2]])
    np.testing.assert_array_equal(ranking.scores, [[1, 0, 0], [3, 0, 0]])
    assert evaluate(task, letter_counts, letter_counts) == {
        "ndcg@10": 1.0,
        "recall@10": 1.0,
        "mrr@10": 1.0,
        "map@100": 1.0,
        "recall@100": 1.0,
    }


def test_a_tied_answer_counts_at_the_rank_it_is_shown_at():
    documents = list(LETTERS[:12])
    task = RetrievalTask("ties", ["?", "?!"], documents, [(1,), (11,)])
    metrics = evaluate(task, letter_counts, letter_counts)
    # Every score is 0, so documents stand in their own order: ranks 2 and 12.
    assert metrics["mrr@10"] == pytest.approx(np.mean([1 / 2, 0]))
    assert metrics["recall@10"] == pytest.approx(1 / 2)
    assert metrics["recall@100"] == pytest.approx(1)


def test_queries_and_documents_have_their_own_encoders():
    task = RetrievalTask("letters", ["a"], ["a", "b"], [(1,)])
    swapped = evaluate(
        task, lambda texts: letter_counts(["b" for _ in texts]), letter_counts
    )
    assert swapped["mrr@10"] == 1.0


def test_ranking_stops_at_the_depth():
    task = RetrievalTask("letters", ["a"], list(LETTERS), [(0,)])
    assert rank(task, letter_counts, letter_counts, depth=3).documents.shape == (1, 3)
    assert rank(task, letter_counts, letter_counts).documents.shape == (1, 26)


@pytest.mark.parametrize(
    ("queries", "documents", "relevant", "message"),
    [
        ([], ["a"], [], "task 't' has no query"),
        (["q"], ["a"], [], "1 queries and relevant documents for 0"),
        (["q"], ["a"], [()], "query 0 has no relevant document"),
        (["q"], ["a"], [(1,)], "query 0 names document 1; there are 1"),
        (["q"], ["a", "b", "a"], [(0,)], "documents 0 and 2 are the same text; 1 of 3"),
    ],
)
def test_a_task_that_cannot_be_measured_is_refused(
    queries, documents, relevant, message
):
    with pytest.raises(ValueError, match=message):
        RetrievalTask("t", queries, documents, relevant)


def test_an_encoder_that_loses_texts_is_refused():
    task = RetrievalTask("t", ["a", "b"], ["a"], [(0,), (0,)])
    with pytest.raises(ValueError, match=r"2 queries of task 't' gave .* \(1, 26\)"):
        evaluate(task, lambda texts: letter_counts(texts[:1]), letter_counts)
