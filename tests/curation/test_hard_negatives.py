import numpy as np
import pytest

from nomic_jax.curation.mining import mine


def embeddings(seed, rows, dim=8):
    x = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def at_cosines(*cosines):
    """Unit rows at the given cosines to the query [1, 0]."""
    return np.array([[c, np.sqrt(1 - c * c)] for c in cosines], np.float32)


QUERY = np.array([[1.0, 0.0]], np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [None, 0.95])
def test_every_query_gets_count_different_negatives_and_no_positive(seed, margin):
    random = np.random.default_rng(seed)
    documents = embeddings(seed, 60)
    # Few distinct texts, so that most positives have equals elsewhere.
    texts = [str(n) for n in random.integers(0, 30, 60)]
    positives = [
        set(random.choice(60, random.integers(1, 6)).tolist()) for _ in range(40)
    ]
    # A query close to its first positive, as a trained model would place it.
    queries = documents[[min(p) for p in positives]] + 0.1 * embeddings(seed + 9, 40)
    options = {"count": 7, "margin": margin, "pool": 10, "seed": seed}
    excluded = [
        {i for i, text in enumerate(texts) if text in {texts[p] for p in known}}
        for known in positives
    ]
    found = mine(queries, documents, positives, excluded=excluded, **options)
    assert found.shape == (40, 7)
    for row, known in zip(found, positives, strict=True):
        assert len(set(row.tolist())) == 7
        assert {texts[i] for i in row}.isdisjoint(texts[i] for i in known)


def test_negatives_are_drawn_from_the_nearest():
    documents = at_cosines(0.99, *np.linspace(0.9, 0.1, 30))
    options = {"count": 3, "margin": None, "pool": 6}
    drawn = [mine(QUERY, documents, [{0}], seed=seed, **options) for seed in range(40)]
    assert set(np.concatenate(drawn).ravel().tolist()) == set(range(1, 7))
    assert all((np.diff(rows) > 0).all() for rows in drawn)  # nearest first


def test_the_draw_of_a_row_depends_on_seed_and_row_alone():
    queries, documents = embeddings(1, 6), embeddings(2, 50)
    positives = [(row,) for row in range(6)]
    options = {"count": 4, "margin": None, "pool": 12}
    first = mine(queries, documents, positives, seed=3, **options)
    fewer = mine(queries[:2], documents, positives[:2], seed=3, **options)
    np.testing.assert_array_equal(first[:2], fewer)
    other = mine(queries, documents, positives, seed=4, **options)
    assert (first != other).any()


def test_equal_queries_draw_apart():
    documents = embeddings(2, 50)
    options = {"count": 4, "margin": None, "pool": 40, "seed": 0}
    found = mine(documents[[0] * 8], documents, [(0,)] * 8, **options)
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_the_margin_is_a_share_of_the_lowest_positive():
    documents = at_cosines(0.9, 0.8, 0.77, 0.75, 0.5, 0.4)
    options = {"count": 2, "pool": 2, "seed": 0}
    # 0.95 * 0.8 = 0.76 is between documents 2 and 3.
    found = mine(QUERY, documents, [(0, 1)], margin=0.95, **options)
    np.testing.assert_array_equal(found, [[3, 4]])
    found = mine(QUERY, documents, [(0, 1)], margin=None, **options)
    np.testing.assert_array_equal(found, [[2, 3]])


def test_the_margin_stays_below_a_negative_positive():
    documents = at_cosines(-0.5, -0.49, -0.51, -0.8)
    found = mine(QUERY, documents, [(0,)], count=1, pool=1, margin=0.9, seed=0)
    np.testing.assert_array_equal(found, [[3]])  # limit -0.55, not -0.45


def test_an_absolute_margin_is_taken_off_the_lowest_positive():
    documents = at_cosines(0.9, 0.8, 0.77, 0.71, 0.69, 0.4)
    options = {"count": 2, "pool": 2, "seed": 0, "margin_kind": "absolute"}
    found = mine(QUERY, documents, [(0, 1)], margin=0.1, **options)
    np.testing.assert_array_equal(found, [[4, 5]])
    found = mine(QUERY, documents, [(0, 1)], margin=0.0, **options)
    np.testing.assert_array_equal(found, [[2, 3]])


def test_a_query_with_too_few_below_the_margin_is_dropped_where_that_is_asked():
    documents = at_cosines(0.8, 0.79, 0.78, 0.1, 0.0, -0.1)
    options = {"count": 3, "pool": 3, "margin": 0.9, "seed": 0, "too_few": "drop"}
    queries, positives = QUERY[[0, 0, 0]], [(0,), (0, 3), (0, 1, 2, 3, 4, 5)]
    found = mine(queries, documents, positives, **options)
    np.testing.assert_array_equal(found, [[3, 4, 5], [-1] * 3, [-1] * 3])


def test_what_is_excluded_is_no_negative_and_moves_no_margin():
    documents = at_cosines(0.9, 0.7, 0.6, 0.5)
    options = {"count": 1, "pool": 1, "margin": 0.8, "seed": 0}
    found = mine(QUERY, documents, [(0,)], excluded=[(1,)], **options)
    np.testing.assert_array_equal(found, [[2]])


def test_random_documents_fill_up_and_those_above_the_margin_come_last():
    documents = at_cosines(0.8, 0.79, 0.78, 0.1, 0.0, -0.1)
    options = {"pool": 4, "margin": 0.9}
    drawn = set()
    for seed in range(20):
        # Among the four nearest only document 3 is below the margin.
        found = mine(QUERY, documents, [(0,)], count=2, depth=4, seed=seed, **options)
        assert found[0, 0] == 3
        drawn.add(int(found[0, 1]))
    assert drawn == {4, 5}
    everything = mine(QUERY, documents, [(0,)], count=4, depth=4, seed=1, **options)
    assert sorted(everything[0, :3].tolist()) == [3, 4, 5]
    assert everything[0, 3] == 2  # the lower of the two above the margin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positives": [(0,)]}, "given for 1 of 2 queries"),
        ({"positives": [(0,), ()]}, "query 1 has no positive"),
        ({"positives": [(0,), (9,)]}, "query 1 names positive 9"),
        ({"positives": [(0,), (-1,)]}, "query 1 names positive -1"),
        ({"positives": [(0,), (0, 1, 2, 3)]}, "query 1 has 1 documents"),
        ({"count": 9, "pool": 9}, "query 0 has 4 documents"),
        ({"count": 4, "pool": 3}, "count=4, pool=3, depth=15"),
        ({"margin": 0.0}, "margin=0.0 must be in"),
        ({"margin": 1.5}, "margin=1.5 must be in"),
        ({"margin": -0.1, "margin_kind": "absolute"}, "margin=-0.1 must be in"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    options = {"positives": [(0,), (1,)], "count": 2, "margin": None, "pool": 3}
    options |= {"seed": 0} | changes
    positives = options.pop("positives")
    with pytest.raises(ValueError, match=message):
        mine(embeddings(0, 2), embeddings(1, 5), positives, **options)


@pytest.mark.parametrize("seed", range(3))
def test_random_documents_are_below_the_margin_while_there_are_such(seed):
    # 400 documents score higher than the positive, 99 lower.
    documents = at_cosines(*np.linspace(0.95, -0.2, 500))
    options = {"pool": 10, "margin": 0.95, "seed": seed}
    (found,) = mine(QUERY, documents, [{400}], count=7, **options)
    limit = documents[400, 0] - 0.05 * abs(documents[400, 0])
    assert (documents[found, 0] <= limit).all() and len(set(found.tolist())) == 7
    # Where they do not suffice, the lowest of those above come last.
    near_end = documents[:410]
    (found,) = mine(QUERY, near_end, [{400}], count=10, **options)
    below = [i for i in range(410) if documents[i, 0] <= limit]
    assert set(found[: len(below)].tolist()) == set(below) and len(below) < 10
    others = [i for i in range(409, -1, -1) if i not in below and i != 400]
    assert found[len(below) :].tolist() == others[: 10 - len(below)]
