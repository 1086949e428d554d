import numpy as np
import pytest

from nomic_jax.data.store.records import (
    decode_record,
    dtype_of,
    encode_record,
    lengths_in,
)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("lengths", [(3, 5), (1,), (2, 0, 7), (1,) * 100, ()])
def test_a_record_is_read_as_it_was_written(lengths, dtype):
    rng = np.random.default_rng(sum(lengths))
    texts = [rng.integers(0, 2**16, n).astype(np.int32) for n in lengths]
    data = encode_record(texts, dtype)
    got = decode_record(data, dtype)
    assert lengths_in(data) == lengths
    assert [text.dtype for text in got] == [np.dtype(dtype)] * len(lengths)
    for one, other in zip(got, texts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_bytes_are_those_the_format_says():
    data = encode_record([np.array([7]), np.array([258, 3])], "uint16")
    # Count 2, lengths 1 and 2, then the ids, each least byte first.
    assert data == b"\2\0\0\0\1\0\0\0\2\0\0\0" + b"\7\0\2\1\3\0"


def test_ids_take_two_bytes_where_all_fit():
    assert (dtype_of(65535), dtype_of(65536)) == ("uint16", "uint32")


@pytest.mark.parametrize("kept", [0, 3, 7, 11])
def test_a_record_cut_in_its_header_is_refused(kept):
    data = encode_record([np.arange(5), np.arange(3)], "uint16")
    with pytest.raises(ValueError, match=f"{kept} bytes are too few"):
        decode_record(data[:kept], "uint16")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_record_of_another_size_than_its_header_says_is_refused(change):
    data = encode_record([np.arange(5)], "uint16") + b"\0"
    with pytest.raises(ValueError, match="its header asks for 18 bytes, it has"):
        decode_record(data[: 18 + change], "uint16")
