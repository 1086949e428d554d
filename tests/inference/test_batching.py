"""Which texts share a batch, and in what shape."""

import logging

import numpy as np
import pytest

from nomic_jax.data.tokenizer import BUCKETS, TextTokenizer
from nomic_jax.inference.batching import (
    TEXTS_PER_CALL,
    _check_texts,
    length_batches,
    tokenize,
)

WORDS = "a small fox jumps over the lazy dog while search query document : _"


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train([WORDS] * 3, vocab_size=128)


def mixed_lengths(seed, count, longest=2000):
    random = np.random.default_rng(seed)
    return (longest ** random.uniform(0.3, 1, count)).astype(int).tolist()


@pytest.mark.parametrize("count", [1, 2, 7, 100, 3000])
@pytest.mark.parametrize("seed", range(3))
def test_every_text_is_in_one_batch_and_fits(seed, count):
    lengths = mixed_lengths(seed, count)
    seen = []
    for batch in length_batches(lengths, max_length=2000, max_tokens=4096):
        assert 1 <= len(batch.members) <= batch.rows
        assert max(lengths[i] for i in batch.members) <= batch.length
        assert batch.length in BUCKETS or batch.length == 2000
        assert batch.rows.bit_count() == 1
        assert batch.rows * batch.length <= 4096
        seen += batch.members
    assert sorted(seen) == list(range(count))


def test_a_text_longer_than_the_bound_gets_a_batch_of_its_own():
    batches = list(length_batches([900, 900, 5], max_length=900, max_tokens=512))
    assert [(b.members, b.length, b.rows) for b in batches] == [
        ([0], 900, 1),
        ([1], 900, 1),
        ([2], 16, 1),
    ]


def test_the_longest_come_first_and_shorter_ones_fill_the_last_rows():
    lengths = [10, 30, 31, 9, 32, 8]
    batches = list(length_batches(lengths, max_length=512, max_tokens=1024))
    assert [(list(b.members), b.length, b.rows) for b in batches] == [
        ([4, 2, 1, 0], 32, 4),
        ([3, 5], 16, 2),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_few_shapes_and_little_padding(seed):
    lengths = mixed_lengths(seed, 3000)
    batches = list(length_batches(lengths, max_length=2000, max_tokens=16384))
    shapes = {(batch.length, batch.rows) for batch in batches}
    # A bucket ends in one full shape and at most a few for its remainder.
    assert len(shapes) <= 3 * len(BUCKETS)
    columns = sum(batch.length * batch.rows for batch in batches)
    # Neighbouring buckets are a factor 1.5 or less apart: a third at most, here half.
    assert 1 - sum(lengths) / columns < 0.2


def test_no_texts_make_no_batches():
    assert list(length_batches([], max_length=16, max_tokens=16)) == []


def test_tokens_do_not_depend_on_the_parts_texts_are_read_in(tokenizer, caplog):
    texts = [f"{'fox ' * (i % 9)}dog" for i in range(2 * TEXTS_PER_CALL + 5)]
    with caplog.at_level(logging.WARNING):
        parts = list(tokenize(texts, tokenizer, prefix="search: ", max_length=8))
    whole = tokenizer.encode([f"search: {text}" for text in texts], max_length=8)
    assert list(map(len, parts)) == [TEXTS_PER_CALL, TEXTS_PER_CALL, 5]
    assert all(map(np.array_equal, sum(parts, []), whole.ids))
    cut = sum(i % 9 > 3 for i in range(len(texts)))  # [CLS] search : ... dog [SEP]
    assert [record.getMessage() for record in caplog.records] == [
        f"cut {cut} of {len(texts)} texts to 8 tokens"
    ]


def test_a_cut_text_keeps_its_closing_token(tokenizer):
    ((row,),) = tokenize(["fox " * 50], tokenizer, prefix="", max_length=8)
    assert len(row) == 8
    assert (row[0], row[-1]) == (
        tokenizer.role_id("cls"),
        tokenizer.role_id("sep"),
    )


def test_too_long_texts_can_be_refused_with_their_number_and_the_first(tokenizer):
    texts = ["fox"] * (TEXTS_PER_CALL + 3) + ["fox " * 50, "dog", "fox " * 60]
    with pytest.raises(
        ValueError, match=rf"^2 of {len(texts)} texts exceed 8 tokens"
    ) as e:
        tokenize(texts, tokenizer, prefix="", max_length=8, on_too_long="error")
    assert f"first at index {TEXTS_PER_CALL + 3};" in str(e.value)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["fox", "", "dog", ""], "2 of 4 texts hold no visible character.* index 1;"),
        (["fox", " \t\n\u3000"], "1 of 2 texts hold no visible character.* index 1;"),
        ("fox", "texts is one string"),
        (["fox", None], r"texts\[1\] is a NoneType, not a string"),
        (["fox", b"dog"], r"texts\[1\] is a bytes, not a string"),
    ],
)
def test_what_is_no_text_is_named(texts, says):
    with pytest.raises(ValueError, match=says):
        _check_texts(texts)
