import math

import numpy as np
import pytest

from nomic_jax.data.schedule import LARGEST, hash32, permute, round_keys


@pytest.mark.parametrize("size", [*range(1, 40), 1000, 4096, 99_991])
def test_every_record_has_one_place(size):
    order = permute(np.arange(size), size, (3, 1))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [2**31 + 1, 10**12, 2**62 - 1, LARGEST])
def test_large_sizes_stay_inside_and_never_collide(size):
    places = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    order = permute(places, size, (0,))
    assert order.min() >= 0 and order.max() < size
    assert len(np.unique(order)) == 10_000


def test_a_place_has_its_record_whatever_else_is_asked():
    whole = permute(np.arange(1000), 1000, (7,))
    some = np.array([999, 0, 500, 0])
    np.testing.assert_array_equal(permute(some, 1000, (7,)), whole[some])
    assert permute(np.array([], np.int64), 1000, (7,)).shape == (0,)


def test_the_values_are_the_same_on_every_platform():
    # Whoever changes these changes the order of every run that is resumed.
    found = [
        permute(np.arange(5), 10, (0,)).tolist(),
        permute(np.arange(5) + 10**8, 10**9, (1, 2, 2**64 - 1)).tolist(),
        permute(np.arange(3) + 2**61, LARGEST, (-1,)).tolist(),
    ]
    assert found == GOLDEN


GOLDEN = [
    [8, 6, 0, 1, 4],
    [997244862, 830556467, 905823081, 753636682, 498595768],
    [1440149295518616802, 710151303547516275, 35006327357363573],
]


def test_keys_that_only_pad_one_another_choose_other_orders():
    keys = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (256,), (-1,), (2**64 - 1,)]
    orders = {permute(np.arange(100), 100, key).tobytes() for key in keys}
    assert len(orders) == len(keys)


def chi_square(counts, expected):
    """Return how many deviations the statistic is from its mean."""
    counts = counts.ravel()
    statistic = (np.square(counts - expected) / expected).sum()
    freedom = len(counts) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.slow
@pytest.mark.parametrize("size", [30, 97])
def test_over_keys_every_record_comes_to_every_place_equally_often(size):
    keys = 2000
    orders = np.array([permute(np.arange(size), size, (key,)) for key in range(keys)])
    counts = np.array([np.bincount(place, minlength=size) for place in orders.T])
    # 4 deviations of chance: one seed set in 10,000, and this one is fixed.
    assert abs(chi_square(counts, keys / size)) < 4
    pairs = orders[:, 0] * size + orders[:, 1]  # what comes first and second
    counts = np.bincount(pairs, minlength=size**2).reshape(size, size)
    assert not np.diag(counts).any()
    off = counts[~np.eye(size, dtype=bool)]
    assert abs(chi_square(off, keys / len(off))) < 4


@pytest.mark.parametrize("size", [10_007, 10**9])
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_any_distance_apart(size, seed):
    order = permute(np.arange(10_000), size, (seed,))
    for apart in (1, 2, 100):
        distance = (order[apart:] - order[:-apart]) % size
        counts = np.bincount(distance * 50 // size, minlength=50)
        assert abs(chi_square(counts, len(distance) / 50)) < 4


def test_a_hash_spreads_over_all_32_bits():
    values = hash32(np.arange(20_000, dtype=np.uint64), round_keys((0,), 1)[0])
    assert values.max() < 2**32
    for bit in range(32):
        ones = (values >> np.uint64(bit) & np.uint64(1)).sum()
        assert abs(int(ones) - 10_000) < 5 * math.sqrt(20_000) / 2  # 5 deviations


def test_sizes_and_places_out_of_range_are_refused():
    for size in (0, -1, LARGEST + 1):
        with pytest.raises(ValueError, match=f"size={size} is not in the range"):
            permute(np.arange(1), size, (0,))
    for place in (-1, 10):
        with pytest.raises(ValueError, match="are not all in range"):
            permute(np.array([place, 3]), 10, (0,))
