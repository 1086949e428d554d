import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax import search
from nomic_jax.search import nearest


def brute_force(queries, documents, k):
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_finds_what_brute_force_finds_with_ties_by_lower_index(seed, block):
    random = np.random.default_rng(seed)
    total = int(random.integers(1, 200))
    k = int(random.integers(1, total + 1))
    # Small integers: products are exact in float32, and many are equal.
    queries = random.integers(-2, 3, (9, 4)).astype(np.float32)
    documents = random.integers(-2, 3, (total, 4)).astype(np.float32)
    scores, indices = nearest(queries, documents, k=k, block=block)
    expected_scores, expected_indices = brute_force(queries, documents, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("queries", [1, 3, 4, 5, 9])
def test_blocks_of_queries_keep_their_order(monkeypatch, queries):
    monkeypatch.setattr(search, "QUERY_BLOCK", 4)
    random = np.random.default_rng(queries)
    left = random.normal(size=(queries, 16)).astype(np.float32)
    right = random.normal(size=(50, 16)).astype(np.float32)
    scores, indices = nearest(left, right, k=5, block=16)
    expected_scores, expected_indices = brute_force(left, right, 5)
    np.testing.assert_array_equal(indices, expected_indices)
    # float32 sums of 16 terms of size about 1: a few units of 1.2e-7 each.
    np.testing.assert_allclose(scores, expected_scores, atol=5e-6)


def test_low_precision_inputs_are_summed_in_float32():
    # 1 + 1/256 + ... is lost in bfloat16, whose next number after 1 is 1 + 1/128.
    query = jnp.ones((1, 3), jnp.bfloat16)
    documents = jnp.array([[1, 0, 0], [1, 2**-9, 2**-9]], jnp.bfloat16)
    scores, indices = nearest(query, documents, k=2)
    np.testing.assert_array_equal(indices, [[1, 0]])
    np.testing.assert_array_equal(scores, np.float32([[1 + 2**-8, 1]]))


def test_no_query_finds_nothing():
    scores, indices = nearest(np.ones((0, 3), np.float32), np.eye(3), k=2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_documents_is_refused_with_the_numbers(k):
    with pytest.raises(ValueError, match=f"k={k} neighbours asked of 3 documents"):
        nearest(np.eye(3), np.eye(3), k=k)


def test_embeddings_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="2 dimensions, documents 3"):
        nearest(np.ones((1, 2)), np.eye(3), k=1)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    documents = np.eye(4, dtype=np.float32)
    documents[2, 2] = bad
    with pytest.raises(ValueError, match="query 0 and document 2 have no finite score"):
        nearest(np.ones((2, 4), np.float32), documents, k=1, block=2)
