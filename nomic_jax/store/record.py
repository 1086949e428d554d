"""The bytes of one record: how many texts, how long each is, and their token ids.

All numbers are little-endian: a uint32 count, as many uint32 lengths, then the ids of
the texts one after another, in two bytes each where the vocabulary allows it.
"""

import struct
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int

Dtype: TypeAlias = Literal["uint16", "uint32"]

_STORED = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_HEADERS = [struct.Struct(f"<{1 + count}I") for count in range(64)]


def dtype_of(largest_id: int) -> Dtype:
    """Return the smaller kind of number that holds every id of a tokenizer."""
    return "uint16" if largest_id < 2**16 else "uint32"


def encode_record(texts: Sequence[Int[np.ndarray, "_"]], dtype: Dtype) -> bytes:
    """Put the ids of texts into bytes.

    Args:
        texts: of a pair [query, document, negatives ...]; of a row of documents, the
            pieces it holds, in their order.
        dtype: as `dtype_of` gives it for the tokenizer; ids must fit.
    """
    header = _header(len(texts)).pack(len(texts), *map(len, texts))
    ids = np.concatenate(texts) if texts else np.empty(0, np.int32)
    return header + ids.astype(_STORED[dtype]).tobytes()


def lengths_in(data: bytes) -> tuple[int, ...]:
    """Return the lengths of a record's texts, in tokens.

    Raises:
        ValueError: the bytes end before them.
    """
    try:
        (count,) = _HEADERS[0].unpack_from(data)
        if len(data) < 4 * (1 + count):
            raise struct.error
        return _header(count).unpack_from(data)[1:]
    except struct.error as error:
        raise ValueError(f"{len(data)} bytes are too few for its header") from error


def decode_record(data: bytes, dtype: Dtype) -> list[np.ndarray]:
    """Return the ids of a record's texts: views of its bytes, of the stored dtype.

    Raises:
        ValueError: the header does not fit the number of bytes.
    """
    lengths = lengths_in(data)
    stored = _STORED[dtype]
    begin = 4 * (1 + len(lengths))
    needed = begin + stored.itemsize * sum(lengths)
    if needed != len(data):
        raise ValueError(f"its header asks for {needed} bytes, it has {len(data)}")
    texts = []
    for length in lengths:
        texts.append(np.frombuffer(data, stored, length, begin))
        begin += stored.itemsize * length
    return texts


def text_bytes(data: bytes, lengths: Sequence[int], index: int, dtype: Dtype) -> bytes:
    """Cut the bytes of one text's ids out of a record."""
    width = _STORED[dtype].itemsize
    begin = 4 * (1 + len(lengths)) + width * sum(lengths[:index])
    return data[begin : begin + width * lengths[index]]


def _header(count: int) -> struct.Struct:
    # Compiling a format takes longer than packing it.
    return _HEADERS[count] if count < len(_HEADERS) else struct.Struct(f"<{1 + count}I")
