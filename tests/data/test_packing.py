import dataclasses

import numpy as np
import pytest

from nomic_jax.data.packing import COLUMNS_PER_SLOT, FINENESS, pack_texts, row_count

PAD = 9_999


def draw_lengths(seed, count=300, most=64):
    spread = np.random.default_rng(seed).lognormal(np.log(most / 4), 0.7, count)
    return np.clip(spread, 3, most).astype(np.int64)


def draw_texts(lengths):
    """Give every token of the batch an id of its own."""
    return np.split(np.arange(lengths.sum(), dtype=np.uint32), np.cumsum(lengths)[:-1])


def plan_of(lengths, parts=1):
    return pack_texts(lengths, row_length=64, parts=parts)


def built(plan, texts, rows=None):
    rows = range(plan.rows) if rows is None else rows
    members = [texts[m] for m in plan.members(rows).tolist()]
    return plan.lay_out(members, rows, pad_id=PAD)


@pytest.mark.parametrize("seed", range(4))
def test_every_text_stands_whole_in_its_slot_and_nothing_else_does(seed):
    lengths = draw_lengths(seed)
    texts = draw_texts(lengths)
    plan = plan_of(lengths)
    packed = built(plan, texts)
    ids, segment_ids = packed.tokens.ids, packed.tokens.segment_ids
    assert ids.shape == (plan.rows, plan.columns)
    assert packed.slot_lengths.shape == (plan.rows, plan.slots)
    (slots,), places = plan.places()
    assert len(np.unique(slots)) == len(texts)
    for text, number in zip(texts, slots[places].tolist(), strict=True):
        row, slot = divmod(number, plan.slots)
        columns = np.flatnonzero(segment_ids[row] == slot + 1)
        np.testing.assert_array_equal(ids[row, columns], text)
        assert columns[-1] - columns[0] == len(text) - 1  # one run
        assert packed.slot_lengths[row, slot] == len(text)
    assert packed.slot_lengths.sum() == packed.tokens.mask.sum() == lengths.sum()
    assert (ids[~packed.tokens.mask] == PAD).all()
    # Segments number the texts of a row from 1 as they stand, padding last.
    steps = np.diff(np.where(segment_ids == 0, plan.slots + 1, segment_ids), axis=1)
    assert (steps >= 0).all() and (segment_ids[: len(set(plan.row)), 0] == 1).all()


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_rows_built_in_parts_are_those_of_the_whole(parts):
    lengths = draw_lengths(0)
    texts = draw_texts(lengths)
    plan = plan_of(lengths, parts=8)
    whole, share = built(plan, texts), plan.rows // parts
    pieces = [
        built(plan, texts, range(first, first + share))
        for first in range(0, plan.rows, share)
    ]
    joined = np.concatenate([piece.slot_lengths for piece in pieces])
    np.testing.assert_array_equal(joined, whole.slot_lengths)
    for field in ("ids", "segment_ids"):
        joined = np.concatenate([getattr(piece.tokens, field) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(whole.tokens, field))


@pytest.mark.parametrize("seed", range(4))
def test_little_of_the_packed_rows_is_padding(seed):
    lengths = draw_lengths(seed, count=2000, most=512)
    plan = pack_texts(lengths, row_length=512)
    used = len(np.unique(plan.row))
    # No packing needs fewer rows than the tokens fill; best fit comes within 2 %.
    assert used <= 1.02 * lengths.sum() / 512 + 1
    assert plan.rows <= (1 + 1 / FINENESS) * used


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("seed", range(3))
def test_parts_list_their_own_texts_in_room_that_depends_on_their_number_alone(
    parts, seed
):
    lengths = draw_lengths(seed, count=400)
    plan = plan_of(lengths, parts)
    slots, places = plan.places()
    assert slots.shape == (parts, 400 // parts + plan.slots)
    share = plan.rows // parts
    part, nth = np.divmod(places, slots.shape[1])
    assert len(np.unique(places)) == 400
    np.testing.assert_array_equal(part, plan.row // share)
    row, slot = np.divmod(slots[part, nth], plan.slots)
    np.testing.assert_array_equal(part * share + row, plan.row)
    np.testing.assert_array_equal(slot, plan.slot)
    counts = np.bincount(part, minlength=parts)
    assert counts.max() - counts.min() <= np.bincount(plan.row).max()
    whole = plan_of(lengths)  # the same rows, in another order
    together = {frozenset(np.flatnonzero(whole.row == r)) for r in range(whole.rows)}
    assert {frozenset(np.flatnonzero(plan.row == r)) for r in range(plan.rows)} == (
        together | {frozenset()} if plan.rows > len(np.unique(plan.row)) else together
    )


def test_a_text_goes_to_the_fullest_row_that_has_room():
    plan = pack_texts(np.array([40, 12, 50, 13, 60, 11]), row_length=64)
    # Rows begin with 60, 50 and 40; 13 fills up the 50, not the 40, which then has room
    # for the 12 and the 11.
    assert plan.row.tolist() == [2, 2, 1, 1, 0, 2]
    assert plan.slot.tolist() == [0, 1, 0, 1, 0, 2]


def test_a_row_takes_no_more_texts_than_it_has_slots():
    plan = pack_texts(np.full(100, 3), row_length=64)
    slots = 64 // COLUMNS_PER_SLOT
    assert plan.slots == slots and plan.slot.max() == slots - 1
    assert np.bincount(plan.row).max() == slots
    assert plan.rows == row_count(-(-100 // slots), 1)
    # A row too short for a slot still holds a text.
    assert pack_texts(np.array([4, 4]), row_length=5).slots == 1


def test_a_plan_follows_from_the_lengths_alone():
    lengths = draw_lengths(1)
    first, second = (plan_of(lengths.copy()) for _ in range(2))
    for field in dataclasses.fields(first):
        one, other = (getattr(plan, field.name) for plan in (first, second))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("multiple", [1, 8])
def test_row_counts_are_few_enough_large_enough_and_whole_multiples(multiple):
    counts = [row_count(rows, multiple) for rows in range(1, 4097)]
    for rows, count in enumerate(counts, start=1):
        assert rows <= count and count % multiple == 0
        assert count < (1 + 1 / FINENESS) * rows + multiple
        assert row_count(count, multiple) == count
    assert counts == sorted(counts)
    for octave in range(6, 12):
        inside = {count for count in counts if 2**octave < count <= 2 ** (octave + 1)}
        assert len(inside) <= FINENESS


def test_lengths_that_fit_no_row_are_refused():
    for lengths, said in (
        ([3, 65], "text 1 has 65 tokens; a row takes 1 to 64"),
        ([3, 0, 5], "text 1 has 0 tokens"),
        ([], "there are no texts"),
    ):
        with pytest.raises(ValueError, match=said):
            plan_of(np.array(lengths, np.int64))


def test_texts_of_other_lengths_than_planned_are_refused():
    plan = pack_texts(np.array([5, 6]), row_length=16)
    texts = [np.arange(n) for n in (5, 6)]  # the plan has the longer first
    with pytest.raises(ValueError, match=r"\[5, 6\] tokens .* for a plan of \[6, 5\]"):
        plan.lay_out(texts, range(plan.rows), pad_id=0)
