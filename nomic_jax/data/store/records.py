"""Records of a store: the rule by which texts become one, and its bytes.

A record is a pair with its hard negatives, or a packed row. All numbers are
little-endian: a uint32 count, as many uint32 lengths, then the ids of the texts one
after another, in two bytes each where the vocabulary allows it.
"""

import dataclasses
import struct
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from nomic_jax.data.sources.pairs import PairColumns

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


Kind: TypeAlias = Literal["pairs", "rows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRule:
    """A record is a query, its document and a fixed number of hard negatives."""

    kind: ClassVar[Kind] = "pairs"

    query_prefix: str  # put before the text as it stands: "search_query: "
    document_prefix: str  # before documents and negatives
    query_length: int  # tokens at most, special ones included
    document_length: int  # of negatives too
    columns: PairColumns = PairColumns()
    num_negatives: int = 0  # stored with each pair: the first ones it has
    # What becomes of a pair with fewer: `repeat` goes through those it has again.
    too_few_negatives: Literal["error", "drop", "repeat"] = "error"
    too_long: Literal["cut", "error"] = "cut"  # a cut text keeps its closing token
    # What a blank or null text does to its pair; a negative is left out alone.
    blank: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        """Refuse numbers that no text can meet.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        for name in ("query_length", "document_length"):
            if getattr(self, name) < 3:
                problems.append(
                    f"{name}={getattr(self, name)} must be at least 3: "
                    "[CLS] token [SEP]"
                )
        if self.num_negatives < 0:
            problems.append(f"num_negatives={self.num_negatives} must be at least 0")
        if self.num_negatives and self.columns.negatives is None:
            problems.append(
                f"num_negatives={self.num_negatives} needs a column of negatives"
            )
        problems += _choices(self, "too_few_negatives", ("error", "drop", "repeat"))
        problems += _choices(self, "too_long", ("cut", "error"))
        problems += _choices(self, "blank", ("error", "drop"))
        if problems:
            raise ValueError("PairRule: " + "; ".join(problems))

    @property
    def texts_per_record(self) -> int:
        """Texts that every record holds."""
        return 2 + self.num_negatives

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Columns of a source that the records are made of."""
        further = self.columns.negatives if self.num_negatives else None
        return (
            self.columns.query,
            self.columns.document,
            *((further,) if further else ()),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowRule:
    """A record is a row of documents packed one after another, of a fixed length.

    Documents carry over from row to row within a range of the source; the last row of
    a range, which they do not fill, is lost.
    """

    kind: ClassVar[Kind] = "rows"
    texts_per_record: ClassVar[int] = 0  # as many as a row happens to hold

    row_length: int  # tokens of every row
    column: str = "text"
    rows_per_range: int = 100_000  # of the source; each range becomes one shard
    blank: Literal["error", "drop"] = "error"  # or leave a blank or null text out

    def __post_init__(self) -> None:
        """Refuse numbers that give no rows.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        if self.row_length < 3:
            problems.append(
                f"row_length={self.row_length} must be at least 3: [CLS] token [SEP]"
            )
        if self.rows_per_range < 1:
            problems.append(f"rows_per_range={self.rows_per_range} must be at least 1")
        problems += _choices(self, "blank", ("error", "drop"))
        if problems:
            raise ValueError("RowRule: " + "; ".join(problems))

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Columns of a source that the records are made of."""
        return (self.column,)


Rule: TypeAlias = PairRule | RowRule


def _choices(rule: object, name: str, known: tuple[str, ...]) -> list[str]:
    value = getattr(rule, name)
    return [] if value in known else [f"{name}={value!r} must be one of {known}"]
