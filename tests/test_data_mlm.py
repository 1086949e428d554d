import numpy as np
import pytest

from nomic_jax.data.mlm import Masking, corrupt, pack, slots

SPECIAL, MASK, VOCABULARY = (0, 1, 2, 3, 4), 4, 1000
MASKING = Masking(
    rate=0.3, mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIAL, seed=0
)


def text_rows(count, length=128, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(5, VOCABULARY, size=(count, length), dtype=np.int32)
    rows[rng.random(rows.shape) < 0.05] = 3  # documents end anywhere in a row
    rows[:, 0] = 2
    return rows


def corrupted(rows, step=0, masking=MASKING, row_numbers=None):
    numbers = range(len(rows)) if row_numbers is None else row_numbers
    return corrupt(rows, masking, step=step, row_numbers=numbers)


def masked(batch, rows):
    """Row, column and target of every slot in use."""
    row, slot = np.nonzero(batch.weights)
    return row, batch.positions[row, slot], batch.targets[row, slot]


def within_binomial(count, trials, rate):
    # Five standard deviations: a fair draw is outside once in two million.
    return abs(count - trials * rate) < 5 * np.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.15, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_the_rate_and_the_three_corruptions_are_within_binomial_bounds(rate, seed):
    rows = text_rows(2000, seed=seed)
    masking = Masking(
        rate=rate, mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIAL, seed=seed
    )
    batch = corrupted(rows, masking=masking)
    row, column, _ = masked(batch, rows)
    assert within_binomial(len(row), (~np.isin(rows, SPECIAL)).sum(), rate)
    now, before = batch.tokens.ids[row, column], rows[row, column]
    assert within_binomial((now == MASK).sum(), len(row), 0.8 + 0.1 / VOCABULARY)
    # A random token is the old one again once in a vocabulary.
    assert within_binomial((now == before).sum(), len(row), 0.1 + 0.1 / VOCABULARY)
    # Random tokens are spread over the whole vocabulary, special ids included.
    others = now[(now != MASK) & (now != before)]
    assert within_binomial((others < VOCABULARY // 2).sum(), len(others), 0.5)


def test_only_chosen_places_change_and_targets_are_what_stood_there():
    rows = text_rows(200)
    kept = rows.copy()
    batch = corrupted(rows)
    row, column, target = masked(batch, rows)
    np.testing.assert_array_equal(rows, kept)  # the caller's array is left alone
    np.testing.assert_array_equal(target, rows[row, column])
    changed = batch.tokens.ids != rows
    changed[row, column] = False
    assert not changed.any()
    assert len({*zip(row.tolist(), column.tolist(), strict=True)}) == len(row)


def test_special_tokens_are_never_chosen():
    rows = text_rows(500)
    row, column, target = masked(corrupted(rows), rows)
    assert not np.isin(target, SPECIAL).any()
    only_special = np.full((2, 64), 3, np.int32)
    assert not corrupted(only_special).weights.any()


def test_unused_slots_have_no_weight():
    rows = text_rows(100)
    batch = corrupted(rows)
    assert batch.positions.shape == (100, slots(128, 0.3))
    counts = batch.weights.sum(axis=1)
    assert counts.min() < counts.max()
    for row, count in enumerate(counts):  # used slots first, in the order of the row
        assert batch.weights[row, :count].all()
        assert (np.diff(batch.positions[row, :count]) > 0).all()
    assert (batch.targets[~batch.weights] == 0).all()


def test_a_batch_on_two_hosts_is_the_batch_on_one():
    rows = text_rows(8)
    whole = corrupted(rows, step=5)
    halves = [
        corrupted(rows[at], 5, row_numbers=at) for at in np.split(np.arange(8), 2)
    ]
    for field in ("positions", "targets", "weights"):
        joined = np.concatenate([getattr(half, field) for half in halves])
        np.testing.assert_array_equal(joined, getattr(whole, field))
    ids = np.concatenate([half.tokens.ids for half in halves])
    np.testing.assert_array_equal(ids, whole.tokens.ids)


def test_rows_steps_and_seeds_are_masked_apart():
    rows = np.tile(text_rows(1), (2, 1))
    first = corrupted(rows)
    other_seed = Masking(
        rate=0.3, mask_id=MASK, vocab_size=VOCABULARY, special_ids=SPECIAL, seed=1
    )
    masks = [
        *first.positions,
        corrupted(rows, step=1).positions[0],
        corrupted(rows, masking=other_seed).positions[0],
    ]
    assert len({mask.tobytes() for mask in masks}) == 4
    np.testing.assert_array_equal(first.positions, corrupted(rows).positions)


def test_room_for_masked_tokens_runs_out_almost_never():
    rows = text_rows(3000)
    full = corrupted(rows).weights.all(axis=1)
    assert full.sum() <= 1  # four standard deviations: once in 30,000 rows
    assert slots(4, 0.9) == 4  # and a short row has room for all of its tokens


def test_packing_loses_the_last_incomplete_row_alone():
    documents = [np.arange(n, dtype=np.int32) + 100 * n for n in (7, 2, 11, 5)]
    rows = pack(iter(documents), row_length=6)
    assert rows.shape == (4, 6) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows.ravel(), np.concatenate(documents)[:24])
    assert pack(documents[1:2], row_length=6).shape == (0, 6)
    assert pack([], row_length=6).shape == (0, 6)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"{rate}.*in \\(0, 1\\)"):
        Masking(rate=rate, mask_id=4, vocab_size=9, special_ids=(), seed=0)
