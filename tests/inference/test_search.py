import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from compilation import environment

from nomic_jax.inference import search
from nomic_jax.inference.search import top_k

pytestmark = pytest.mark.optimized


def brute_force(queries, documents, k):
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_finds_what_brute_force_finds_with_ties_by_lower_index(seed, block):
    random = np.random.default_rng(seed)
    total = int(random.integers(1, 200))
    k = int(random.integers(1, total + 1))
    # Small integers: products are exact in float32, and many are equal.
    queries = random.integers(-2, 3, (9, 4)).astype(np.float32)
    documents = random.integers(-2, 3, (total, 4)).astype(np.float32)
    scores, indices = top_k(queries, documents, k=k, block=block)
    expected_scores, expected_indices = brute_force(queries, documents, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("queries", [1, 3, 4, 5, 9])
def test_blocks_of_queries_keep_their_order(monkeypatch, queries):
    monkeypatch.setattr(search, "QUERY_BLOCK", 4)
    random = np.random.default_rng(queries)
    left = random.normal(size=(queries, 16)).astype(np.float32)
    right = random.normal(size=(50, 16)).astype(np.float32)
    scores, indices = top_k(left, right, k=5, block=16)
    expected_scores, expected_indices = brute_force(left, right, 5)
    np.testing.assert_array_equal(indices, expected_indices)
    # float32 sums of 16 terms of size about 1: a few units of 1.2e-7 each.
    np.testing.assert_allclose(scores, expected_scores, atol=5e-6)


def test_low_precision_inputs_are_summed_in_float32():
    # 1 + 1/256 + ... is lost in bfloat16, whose next number after 1 is 1 + 1/128.
    query = jnp.ones((1, 3), jnp.bfloat16)
    documents = jnp.array([[1, 0, 0], [1, 2**-9, 2**-9]], jnp.bfloat16)
    scores, indices = top_k(query, documents, k=2)
    np.testing.assert_array_equal(indices, [[1, 0]])
    np.testing.assert_array_equal(scores, np.float32([[1 + 2**-8, 1]]))


def test_no_query_finds_nothing():
    scores, indices = top_k(np.ones((0, 3), np.float32), np.eye(3), k=2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_documents_is_refused_with_the_numbers(k):
    with pytest.raises(ValueError, match=f"k={k} neighbours asked of 3 documents"):
        top_k(np.eye(3), np.eye(3), k=k)


def test_embeddings_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="2 dimensions, documents 3"):
        top_k(np.ones((1, 2)), np.eye(3), k=1)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    documents = np.eye(4, dtype=np.float32)
    documents[2, 2] = bad
    with pytest.raises(ValueError, match="query 0 and document 2 have no finite score"):
        top_k(np.ones((2, 4), np.float32), documents, k=1, block=2)


@pytest.fixture
def by_candidates(monkeypatch):
    """Let rounded vectors choose candidates on any hardware, and few of them."""
    monkeypatch.setattr(search, "COARSE_DOCUMENTS", 1)
    monkeypatch.setattr(search, "COARSE_QUERIES", 1)
    monkeypatch.setattr(search, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(search, "_candidates", lambda k: k + 4)
    again, real = [], search.scan

    def scan(queries, documents, *, rounding="none", **options):
        if rounding == "none":
            again.append(len(queries))
        return real(queries, documents, rounding=rounding, **options)

    monkeypatch.setattr(search, "scan", scan)
    return again


@pytest.mark.parametrize("block", [96, 1500])
def test_groups_find_what_brute_force_finds(block):
    random = np.random.default_rng(block)
    queries = random.integers(-3, 4, (20, 6)).astype(np.float32)
    # Sorted, so that the best groups of every block come last and tie.
    documents = random.integers(-3, 4, (3001, 6)).astype(np.float32)
    documents = documents[np.argsort(documents @ queries[0], kind="stable")]
    for k in (1, 9, 100):
        scores, indices = top_k(queries, documents, k=k, block=block)
        expected_scores, expected_indices = brute_force(queries, documents, k)
        np.testing.assert_array_equal(indices, expected_indices)
        np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_candidates_of_rounded_vectors_hold_the_best(by_candidates, k, scale):
    random = np.random.default_rng(k)
    queries, documents = random.normal(size=(40, 12)), random.normal(size=(900, 12))
    # Many neighbours are closer to one another than bfloat16 can tell.
    documents[100:600] = documents[0] + 1e-3 * documents[100:600]
    queries, documents = queries.astype(np.float32), documents.astype(np.float32)
    queries[:10] = documents[0]
    queries *= np.float32(scale)
    scores, indices = top_k(queries, documents, k=k, block=256)
    expected_scores, expected_indices = brute_force(queries, documents, k)
    # float32 sums of 12 terms, the largest about 10: 12 * 10 * 6e-8.
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5 * scale)
    apart = np.abs(np.diff(expected_scores, axis=1)).min(axis=1, initial=1)
    clear = apart > 2e-5 * scale
    np.testing.assert_array_equal(indices[clear], expected_indices[clear])
    # Those in doubt were searched again; where squares vanish, that is all of them.
    assert 10 <= sum(by_candidates) < 40 if scale == 1 else by_candidates == [40]


def test_candidates_keep_ties_in_order_of_index(by_candidates):
    random = np.random.default_rng(0)
    queries = random.integers(-2, 3, (9, 4)).astype(np.float32)
    documents = random.integers(-2, 3, (300, 4)).astype(np.float32)
    _, indices = top_k(queries, documents, k=5)
    np.testing.assert_array_equal(indices, brute_force(queries, documents, 5)[1])
    # Rounding puts the second before the first: 257 becomes 256, and 129 stays.
    documents = np.concatenate([[[257, 1], [129, 129]], np.eye(2).repeat(60, axis=0)])
    _, indices = top_k(np.ones((1, 2)), documents.astype(np.float32), k=2)
    np.testing.assert_array_equal(indices, [[0, 1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_candidates_do_not_hide_what_is_not_finite(by_candidates, bad):
    documents = np.eye(40, dtype=np.float32)
    documents[2, 2] = bad
    with pytest.raises(ValueError, match="query 0 and document 2 have no finite score"):
        top_k(np.ones((2, 40), np.float32), documents, k=1)


DEVICES = """
import jax
import numpy as np
from nomic_jax.inference import search

assert jax.local_device_count() == 8
from test_search import brute_force

random = np.random.default_rng(0)
for total, block, k in ((9000, 8192, 11), (9000, 100, 3), (5, 8, 5), (61, 64, 61)):
    queries = random.integers(-2, 3, (13, 5)).astype(np.float32)
    documents = random.integers(-2, 3, (total, 5)).astype(np.float32)
    expected = brute_force(queries, documents, k)
    for found, wanted in zip(
        search.top_k(queries, documents, k=k, block=block), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
search.COARSE_DOCUMENTS = search.COARSE_QUERIES = 1
search._multiplies_bfloat16 = lambda: True
queries = random.normal(size=(70, 24)).astype(np.float32)
documents = random.normal(size=(9000, 24)).astype(np.float32)
_, indices = search.top_k(queries, documents, k=4)
np.testing.assert_array_equal(indices, brute_force(queries, documents, 4)[1])
print("EQUAL")
"""


@pytest.mark.slow
def test_eight_devices_find_what_one_finds():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=environment(devices=8, test=__file__),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "EQUAL" in done.stdout, done.stderr
