import dataclasses
import pickle

import jax
import numpy as np
import pytest
from stores import write_row_store

from nomic_jax.data.mlm import Masking, MlmBatches, corrupt, slots
from nomic_jax.data.schedule import Schedule

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


def row_store(tmp_path, name="text", count=23, row_length=16, seed=0):
    """A store of packed rows of one to three documents each, and the rows."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = random.integers(5, VOCABULARY, size=row_length).astype(np.int32)
        cuts = np.sort(random.choice(np.arange(1, row_length), size=2, replace=False))
        rows.append(np.split(ids, cuts[: random.integers(3)]))
    store = write_row_store(tmp_path / name, name, rows, row_length=row_length)
    return store, rows


def batches(stores, **changes):
    sizes = {name: len(store) for name, store in stores.items()}
    values = {"row_length": 16} | changes
    return MlmBatches(
        stores, Schedule.over(sizes, batch_size=8, seed=0), MASKING, **values
    )


def test_a_batch_holds_the_rows_that_the_schedule_names(tmp_path):
    store, rows = row_store(tmp_path)
    batch_at = batches({"text": store})
    for step in range(4):
        batch = batch_at(step)
        _, records = batch_at.schedule.at(step)
        whole = batch.arrays.tokens.ids.copy()
        row, slot = np.nonzero(batch.arrays.weights)
        whole[row, batch.arrays.positions[row, slot]] = batch.arrays.targets[row, slot]
        expected = [np.concatenate(rows[record]) for record in records]
        np.testing.assert_array_equal(whole, expected)
        assert batch.num_tokens == batch.num_columns == 8 * 16


def test_documents_of_a_row_see_one_another_unless_asked_otherwise(tmp_path):
    store, rows = row_store(tmp_path)
    joined = batches({"text": store})(0).arrays.tokens
    assert (joined.segment_ids == 1).all()
    apart = batches({"text": store}, documents="separate")
    _, records = apart.schedule.at(0)
    tokens = apart(0).arrays.tokens
    np.testing.assert_array_equal(tokens.ids, joined.ids)
    assert max(len(rows[record]) for record in records) == 3
    for ids, record in zip(tokens.segment_ids, records, strict=True):
        lengths = [len(piece) for piece in rows[record]]
        np.testing.assert_array_equal(
            ids, np.repeat(range(1, 1 + len(lengths)), lengths)
        )


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_hosts_parts_of_a_batch_make_the_batch_of_one_host(tmp_path, hosts):
    stores = {name: row_store(tmp_path, name, seed=i)[0] for i, name in enumerate("ab")}
    whole = batches(stores, documents="separate")
    for step in (0, 3, 1001):
        parts = [
            batches(stores, documents="separate", host=host, hosts=hosts)(step)
            for host in range(hosts)
        ]
        assert {part.source for part in parts} == {whole(step).source}
        joined = jax.tree.map(
            lambda *arrays: np.concatenate(arrays), *(part.arrays for part in parts)
        )
        jax.tree.map(np.testing.assert_array_equal, joined, whole(step).arrays)


def test_a_batch_is_the_same_after_a_jump_and_after_a_walk_and_in_another_process(
    tmp_path,
):
    store, _ = row_store(tmp_path)
    batch_at = batches({"text": store})
    walked = [batch_at(step) for step in range(9)][-1]
    for other in (batches({"text": store}), pickle.loads(pickle.dumps(batch_at))):
        jax.tree.map(np.testing.assert_array_equal, other(8).arrays, walked.arrays)


def test_what_does_not_fit_the_rows_is_refused(tmp_path):
    store, _ = row_store(tmp_path)
    with pytest.raises(ValueError, match="'text' has rows of 16 tokens, row_length=12"):
        batches({"text": store}, row_length=12)
    with pytest.raises(ValueError, match="batch_size=8 does not split among 3 hosts"):
        batches({"text": store}, hosts=3)
    for host in (2, -1):
        with pytest.raises(ValueError, match=f"host={host} of hosts=2: .* from 0"):
            batches({"text": store}, host=host, hosts=2)
    good = batches({"text": store})
    for sizes, said in (
        ({"txet": 23}, "'txet' is scheduled and has no store"),
        ({"text": 99}, "scheduled with 99 records, its store has only 23"),
    ):
        schedule = Schedule.over(sizes, batch_size=8, seed=0)
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(good, schedule=schedule)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match=f"{rate}.*in \\(0, 1\\)"):
        Masking(rate=rate, mask_id=4, vocab_size=9, special_ids=(), seed=0)
