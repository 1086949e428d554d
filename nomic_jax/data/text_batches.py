"""Texts to embed, packed into batches of few shapes, the longest first.

Attention within a row multiplies all its columns by each other, unless a kernel knows
where texts end. So rows are not much longer than their longest text: the longest texts
left share rows of the length that costs least a token, and shorter texts fill what room
these rows have. Rows of each length come in one number, but for the last texts of all.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from nomic_jax.batch import PackedTexts
from nomic_jax.data.packing import Packing, pack_texts
from nomic_jax.tokenizer import BUCKETS, bucket

# Columns of a row at which attention costs as much as all the rest: on a processor,
# batches of 2,048 tokens took 10 % longer in rows of 512 columns than in rows of 32.
ATTENTION_COLUMNS = 4608

# Rows of up to so many times the longest text's bucket are considered.
LONGEST_ROW = 4

# Batches that are packed together: the more, the fewer columns are left empty.
BATCHES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """What bounds the rows of a batch."""

    max_length: int  # columns at most
    max_tokens: int  # columns of a device, unless a single row has more
    devices: int  # that share the rows

    def rows(self, columns: int) -> int:
        """Return how many rows of a length make a whole batch."""
        most = max(self.max_tokens // columns, 1)
        return self.devices << (most.bit_length() - 1)

    def row_lengths(self, longest: int) -> list[int]:
        """Return the row lengths that suit texts of up to so many tokens."""
        shortest = min(bucket(longest), self.max_length)
        most = max(min(LONGEST_ROW * shortest, self.max_tokens), shortest)
        lengths = {min(length, self.max_length) for length in BUCKETS}
        return sorted(length for length in lengths if shortest <= length <= most)


@dataclasses.dataclass(frozen=True)
class TextBatch:
    """A batch, and which texts its slots hold."""

    members: Int[np.ndarray, "texts"]  # numbers of the texts, in input order
    slots: Int[np.ndarray, "texts"]  # of each; see `PackedTexts`
    texts: PackedTexts
    num_tokens: int


def text_batches(
    parts: Iterable[Sequence[np.ndarray]], shape: BatchShape, *, pad_id: int
) -> Iterator[TextBatch]:
    """Yield batches that hold every text once.

    Several batches' worth of texts are packed together, the longest first; of what
    comes in further parts nothing is held before it is needed.

    Args:
        parts: token ids of the texts, each at most `max_length` of them.
        shape: of a batch.
        pad_id: the id written where there is no token.
    """
    waiting: dict[int, np.ndarray] = {}
    count = 0
    window = BATCHES_AT_ONCE * shape.max_tokens * shape.devices
    for part in parts:
        waiting |= enumerate(part, count)
        count += len(part)
        if sum(map(len, waiting.values())) >= window:
            yield from _full(waiting, shape, pad_id, last=False)
    yield from _full(waiting, shape, pad_id, last=True)


def _full(
    waiting: dict[int, np.ndarray], shape: BatchShape, pad_id: int, *, last: bool
) -> Iterator[TextBatch]:
    """Yield batches and take their texts out; without `last`, whole batches only."""
    while waiting:
        numbers = np.fromiter(waiting, np.int64, len(waiting))
        lengths = np.fromiter(map(len, waiting.values()), np.int64, len(waiting))
        packing, rows = _cheapest(lengths, shape, last=last)
        if not rows:  # the texts left do not fill a batch: they wait for more
            return
        at_once = shape.rows(packing.columns)
        for start in range(0, rows, at_once):
            some = range(start, min(start + at_once, rows))
            inside = packing.members(some)
            members = numbers[inside]
            texts = [waiting.pop(number) for number in members.tolist()]
            yield TextBatch(
                members,
                (packing.row[inside] - start) * packing.slots + packing.slot[inside],
                packing.lay_out(texts, some, pad_id=pad_id),
                int(lengths[inside].sum()),
            )


def _cheapest(
    lengths: Int[np.ndarray, "texts"], shape: BatchShape, *, last: bool
) -> tuple[Packing, int]:
    """Pack texts in rows of the length that suits the longest of them.

    Returns:
        The packing, and how many of its rows, the first, are to be taken.
    """
    longest = int(lengths.max())
    shorter = max((length for length in BUCKETS if length < longest), default=0)
    found = []
    for columns in shape.row_lengths(longest):
        packing = pack_texts(lengths, row_length=columns)
        used = int(packing.row.max()) + 1
        # Rows are numbered by the longest text in them. Shorter texts fill the rows
        # that lack to a whole batch; of these the same is asked again.
        begun = int(packing.row[lengths > shorter].max()) + 1
        at_once = shape.rows(columns)
        rows = -(-begun // at_once) * at_once
        if rows > used:
            rows = used // at_once * at_once
            rest = -(-(used - rows) // shape.devices)
            rows += shape.devices << (rest - 1).bit_length() if last and rest else 0
        placed = int(lengths[packing.row < rows].sum())
        cost = rows * columns * (1 + columns / ATTENTION_COLUMNS) / max(placed, 1)
        found.append((cost, columns, packing, rows))
    _, _, packing, rows = min(found, key=lambda each: each[:2])
    return packing, rows
