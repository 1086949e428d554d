"""Texts into rows of one length: which text goes where, from their lengths alone.

Best-fit decreasing (Johnson et al. 1974, doi:10.1137/0203025): the longest text first,
each into the fullest row that has room for it. Rows are kept by the room they have
left, and a whole number whose bits say which rooms there are finds the row at once.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from nomic_jax.batch import PADDING, PackedTexts, Tokens

COLUMNS_PER_SLOT = 8  # a row holds up to an eighth as many texts as columns
FINENESS = 8  # row counts between one power of two and the next


@dataclasses.dataclass(frozen=True)
class Packing:
    """The place of each text of a batch; text `m` is entry `m` of every array."""

    lengths: Int[np.ndarray, "texts"]
    row: Int[np.ndarray, "texts"]
    slot: Int[np.ndarray, "texts"]  # 0 for the first text of its row
    rows: int
    columns: int
    slots: int  # room for texts in a row
    parts: int  # of equally many rows, one after another

    def places(
        self,
    ) -> tuple[Int32[np.ndarray, "parts room"], Int32[np.ndarray, "texts"]]:
        """List the slots that hold texts, part by part, and where each text is listed.

        How long the lists are follows from the number of texts alone: rows are dealt
        out to the parts so that their texts differ by at most those of one row.

        Returns:
            Slots of each part, numbered within its rows, 0 where the list has more room
            than texts; and each text's place in all lists, one after another.
        """
        room = len(self.row)
        if self.parts > 1:
            room = -(-room // self.parts) + self.slots
        share = self.rows // self.parts
        order = np.lexsort((self.slot, self.row))
        part = self.row[order] // share
        nth = np.arange(len(order)) - np.searchsorted(part, part)
        slots = np.zeros((self.parts, room), np.int32)
        slots[part, nth] = (self.row[order] % share) * self.slots + self.slot[order]
        places = np.empty(len(order), np.int32)
        places[order] = part * room + nth
        return slots, places

    def begins(self) -> Int[np.ndarray, " texts"]:
        """Return the column at which each text begins in its row."""
        order = np.lexsort((self.slot, self.row))
        before = np.cumsum(self.lengths[order]) - self.lengths[order]
        first = np.searchsorted(self.row[order], self.row[order])
        begins = np.empty_like(before)
        begins[order] = before - before[first]
        return begins

    def members(self, rows: range) -> Int[np.ndarray, " texts"]:
        """Return the texts in some rows, row by row, in the order they stand there."""
        inside = np.flatnonzero((self.row >= rows.start) & (self.row < rows.stop))
        return inside[np.lexsort((self.slot[inside], self.row[inside]))]

    def lay_out(
        self, texts: Sequence[np.ndarray], rows: range, *, pad_id: int
    ) -> PackedTexts:
        """Build some rows of the batch.

        Args:
            texts: token ids of `members(rows)`.
            rows: which ones.
            pad_id: the id written where there is no token.

        Raises:
            ValueError: a text has another length than was planned for.
        """
        members = self.members(rows)
        lengths = self.lengths[members]
        found = np.fromiter(map(len, texts), np.int64, len(texts))
        if not np.array_equal(found, lengths):
            raise ValueError(
                f"texts of {found.tolist()[:8]} tokens were given for a plan of "
                f"{lengths.tolist()[:8]}; plan with the lengths the texts have"
            )
        local = self.row[members] - rows.start
        count = np.bincount(local, minlength=len(rows))  # texts of each row
        used = np.bincount(local, weights=lengths, minlength=len(rows))
        room = self.columns - used.astype(np.int64)
        ends = np.cumsum(count)
        # All rows are one run of texts, with a run of padding after each row's last.
        padding = np.full(self.columns, pad_id, np.int32)
        runs: list[np.ndarray] = []
        start = 0
        for end, columns in zip(ends.tolist(), room.tolist(), strict=True):
            runs += texts[start:end]
            runs.append(padding[:columns])
            start = end
        ids = np.concatenate(runs, dtype=np.int32)
        segments = np.insert(self.slot[members] + 1, ends, PADDING).astype(np.int32)
        segment_ids = np.repeat(segments, np.insert(lengths, ends, room))
        slot_lengths = np.zeros((len(rows), self.slots), np.int32)
        slot_lengths[local, self.slot[members]] = lengths
        shape = (len(rows), self.columns)
        return PackedTexts(
            Tokens(ids.reshape(shape), segment_ids.reshape(shape), texts=self.slots),
            slot_lengths,
        )


def texts_per_row(row_length: int) -> int:
    """Return how many texts go into a row at most."""
    return max(row_length // COLUMNS_PER_SLOT, 1)


def pack_texts(
    lengths: Int[np.ndarray, "texts"], *, row_length: int, parts: int = 1
) -> Packing:
    """Put several texts into a row, so that little of it is padding.

    Args:
        lengths: of the texts, in tokens.
        row_length: columns of a row; at most an eighth as many texts go into one.
        parts: the rows divide into as many equal parts, with about as many texts.

    Raises:
        ValueError: a text is empty or longer than a row.
    """
    _check_lengths(lengths, row_length)
    slots = texts_per_row(row_length)
    rows_with: list[list[int]] = [[] for _ in range(row_length + 1)]  # by their room
    rooms = 0  # bit r is set while some row has room r
    texts_in: list[int] = []
    # Stable, so that the plan is the same everywhere.
    order = np.argsort(-lengths, kind="stable")
    row = np.empty(len(lengths), np.int64)
    slot = np.empty(len(lengths), np.int64)
    placed: list[tuple[int, int]] = []
    for length in lengths[order].tolist():
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            same = rows_with[room]
            number = same.pop()
            if not same:
                rooms ^= 1 << room
        else:
            room, number = row_length, len(texts_in)
            texts_in.append(0)
        count = texts_in[number]
        placed.append((number, count))
        texts_in[number] = count + 1
        room -= length
        if room and count + 1 < slots:
            rows_with[room].append(number)
            rooms |= 1 << room
    row[order], slot[order] = np.array(placed, np.int64).reshape(-1, 2).T
    rows = row_count(len(texts_in), parts)
    if parts > 1:
        row = _dealt(np.array(texts_in), rows, parts)[row]
    return Packing(lengths, row, slot, rows, row_length, slots, parts)


def _dealt(
    texts_in: Int[np.ndarray, "used"], rows: int, parts: int
) -> Int[np.ndarray, "rows"]:
    """Number rows again: dealt out to the parts by their texts, to and fro."""
    counts = np.zeros(rows, np.int64)
    counts[: len(texts_in)] = texts_in
    turn, seat = np.divmod(np.arange(rows), parts)
    part = np.where(turn % 2, parts - 1 - seat, seat)
    numbers = np.empty(rows, np.int64)
    numbers[np.argsort(-counts, kind="stable")] = part * (rows // parts) + turn
    return numbers


def row_count(rows: int, multiple: int) -> int:
    """Round a number of rows up to one of few, so that few programs are compiled.

    Counts are multiples of `multiple`, and 8 of them lie between one power of two
    times `multiple` and the next: an average of 4 % of the rows is added.
    """
    units = max(-(-rows // multiple), 1)
    step = max((1 << (units - 1).bit_length()) // (2 * FINENESS), 1)
    return -(-units // step) * step * multiple


def _check_lengths(lengths: np.ndarray, most: int) -> None:
    if not lengths.size:
        raise ValueError("there are no texts to put into rows")
    for wrong in (int(lengths.argmin()), int(lengths.argmax())):
        if not 1 <= lengths[wrong] <= most:
            raise ValueError(
                f"text {wrong} has {lengths[wrong]} tokens; a row takes 1 to {most}: "
                "cut it, or make rows longer"
            )
