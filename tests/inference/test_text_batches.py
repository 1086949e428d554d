"""Which texts to embed share rows and batches, and in what shapes."""

import numpy as np
import pytest

from nomic_jax.data.tokenizer import BUCKETS
from nomic_jax.inference.batching import BATCHES_AT_ONCE, BatchShape, text_batches

PAD = 9_999


def draw_lengths(seed, count, longest=2000):
    random = np.random.default_rng(seed)
    return (longest ** random.uniform(0.3, 1, count)).astype(int)


def in_parts(lengths, size=100):
    """Token ids of the texts, all of a text its number."""
    texts = [np.full(length, number) for number, length in enumerate(lengths)]
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def batches_of(lengths, **changes):
    shape = BatchShape(
        **({"max_length": 2000, "max_tokens": 4096, "devices": 1} | changes)
    )
    return shape, list(text_batches(in_parts(lengths), shape, pad_id=PAD))


def columns_of(batches):
    return sum(batch.texts.tokens.ids.size for batch in batches)


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 250, 1500])
def test_every_text_stands_once_in_the_slot_that_is_named(count, devices):
    lengths = draw_lengths(count, count)
    shape, batches = batches_of(lengths, devices=devices)
    seen = []
    for batch in batches:
        tokens, slot_lengths = batch.texts.tokens, batch.texts.slot_lengths
        rows, columns = tokens.ids.shape
        assert rows % devices == 0 and rows // devices * columns <= 4096
        assert columns in BUCKETS or columns == 2000
        for member, number in zip(batch.members, batch.slots, strict=True):
            row, slot = divmod(number, slot_lengths.shape[1])
            mine = tokens.segment_ids[row] == slot + 1
            assert (tokens.ids[row, mine] == member).all()
            assert mine.sum() == slot_lengths[row, slot] == lengths[member]
        assert batch.num_tokens == tokens.mask.sum() == slot_lengths.sum()
        seen += batch.members.tolist()
    assert sorted(seen) == list(range(count))


def test_no_texts_make_no_batches():
    assert batches_of([])[1] == []
    shape = BatchShape(max_length=16, max_tokens=16, devices=1)
    assert list(text_batches([[]], shape, pad_id=PAD)) == []


def test_a_text_longer_than_the_bound_gets_a_batch_of_its_own():
    _, batches = batches_of([900, 900, 5], max_length=900, max_tokens=512)
    shapes = [batch.texts.tokens.ids.shape for batch in batches]
    assert shapes == [(1, 900), (1, 900), (1, 16)]


@pytest.mark.parametrize(
    ("length", "shape", "share"),
    [
        (32, (64, 32), 1),
        (512, (4, 512), 1),
        (300, (1, 1536), 1500 / 1536),
        # Three to a row of 1,024 would leave less empty, and attention do more.
        (340, (4, 384), 340 / 384),
    ],
)
def test_texts_of_one_length_are_in_rows_that_they_fill(length, shape, share):
    _, batches = batches_of([length] * 640, max_tokens=2048)
    assert {batch.texts.tokens.ids.shape for batch in batches} == {shape}
    assert 640 * length / columns_of(batches) == pytest.approx(share)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_texts_leave_few_columns_empty_in_few_shapes(seed):
    lengths = draw_lengths(seed, 3000)
    _, batches = batches_of(lengths, max_tokens=2048)
    # 0.6 % was measured; in rows of one text each it is 17 %.
    assert 1 - lengths.sum() / columns_of(batches) < 0.02
    shapes = {batch.texts.tokens.ids.shape for batch in batches}
    assert len(shapes) <= len(BUCKETS)


def test_only_the_last_batch_is_not_a_whole_one():
    lengths = draw_lengths(0, 3000, longest=300)
    shape, batches = batches_of(lengths, max_length=512, devices=2)
    assert len(batches) > 3 * BATCHES_AT_ONCE  # so that texts waited for others
    for batch in batches[:-1]:
        rows, columns = batch.texts.tokens.ids.shape
        assert rows == shape.rows(columns)
        assert batch.texts.tokens.mask.any(axis=1).all()


def test_rows_are_not_much_longer_than_their_longest_text():
    lengths = draw_lengths(0, 3000)
    for batch in batches_of(lengths)[1]:
        columns = batch.texts.tokens.ids.shape[1]
        longest = batch.texts.slot_lengths.max()
        # Up to four times the bucket of the longest, which is up to 1.5 times it.
        assert columns <= 6 * max(longest, 16)


def test_the_longest_texts_of_what_is_there_come_first():
    lengths = draw_lengths(0, 100)
    longest = [lengths[batch.members].max() for batch in batches_of(lengths)[1]]
    assert longest[0] == lengths.max()
    buckets = [next(b for b in BUCKETS if b >= length) for length in longest]
    assert buckets == sorted(buckets, reverse=True)


def test_parts_are_asked_for_when_they_are_needed():
    asked = []

    def parts():
        for number in range(20):
            asked.append(number)
            yield [np.zeros(100, np.int64)] * 64

    shape = BatchShape(max_length=512, max_tokens=1024, devices=1)
    next(text_batches(parts(), shape, pad_id=PAD))
    assert len(asked) == -(-BATCHES_AT_ONCE * 1024 // 6400)
