"""The batches that a head is trained on: examples in rows of the longest one's length.

An epoch is all examples in an order of its own; one epoch follows another without a
gap, so every batch is full and every example comes up once an epoch. Texts share rows,
so that little of what the encoder multiplies is padding, and rows are as long in every
step, so that few programs are compiled; where each text went, a batch says.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from nomic_jax.batch import ABSENT, PADDING, MaskedTokens, StepBatch, TaskBatch, Tokens
from nomic_jax.data.mlm import Masking, corrupt
from nomic_jax.data.packing import Packing, pack_texts
from nomic_jax.data.schedule import host_problems, permute
from nomic_jax.data.tokenizer import bucket, pad
from nomic_jax.downstream.encoding import Rows, RowSource
from nomic_jax.downstream.examples import NO_LABEL


@dataclasses.dataclass(frozen=True)
class TaskBatches:
    """The batch of each step: a pure function that worker processes can be sent."""

    name: str  # what metrics call it
    source: RowSource
    _: dataclasses.KW_ONLY
    batch_size: int  # examples of the whole batch
    seed: int  # of the order
    pad_id: int
    max_length: int  # columns at most
    masking: Masking | None = None  # of the tokens that an MLM head is to predict
    parts: int = 1  # of the examples, one for each device that takes rows
    host: int = 0  # whose part of each batch is built here
    hosts: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that devices and hosts cannot share.

        Raises:
            ValueError: with the numbers.
        """
        problems = host_problems(self.host, self.hosts)
        if not problems and (self.batch_size % self.parts or self.parts % self.hosts):
            problems.append(
                f"batch_size={self.batch_size} does not split into {self.parts} equal "
                f"parts among {self.hosts} hosts; use a multiple of both"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def row_length(self) -> int:
        """Columns of every row: the longest example's, rounded up to one of few."""
        return min(bucket(self.source.longest), self.max_length)

    def __call__(self, step: int) -> StepBatch:
        """Build this host's examples of a step's batch.

        All hosts look at all rows, as the part that needs most of them says how many
        each part has.
        """
        choices = self.source.choices
        everything = self.source.rows(self.examples(step), step)
        lengths = np.fromiter(map(len, everything.ids), np.int64, len(everything.ids))
        plans = [
            pack_texts(part[part > 0], row_length=self.row_length)
            for part in lengths.reshape(self.parts, -1)
        ]
        share, own = self.batch_size // self.hosts, self.parts // self.hosts
        mine = range(self.host * share, (self.host + 1) * share)
        batch = padded(
            of_examples(everything, mine, choices),
            length=self.row_length,
            pad_id=self.pad_id,
            masking=self.masking,
            step=step,
            numbers=mine,
            choices=choices,
        )
        batch = packed(
            batch,
            plans[self.host * own : (self.host + 1) * own],
            rows=max(plan.rows for plan in plans),
            pad_id=self.pad_id,
        )
        columns = batch.tokens.ids.size
        tokens = int(np.count_nonzero(batch.tokens.mask))
        return StepBatch(self.name, batch, num_tokens=tokens, num_columns=columns)

    def examples(self, step: int) -> Int64[np.ndarray, "B"]:
        """Return the numbers of a step's examples, epoch after epoch."""
        size = len(self.source)
        places = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs = places // size
        found = [
            permute(places[epochs == epoch] % size, size, (self.seed, int(epoch)))
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(found)


def of_examples(rows: Rows, examples: range, choices: int) -> Rows:
    """Take a range of examples, with all rows of each."""
    span = slice(examples.start * choices, examples.stop * choices)
    return Rows(
        rows.ids[span],
        None if rows.types is None else rows.types[span],
        rows.labels[examples.start : examples.stop],
    )


def padded(
    rows: Rows,
    *,
    length: int,
    pad_id: int,
    masking: Masking | None = None,
    step: int = 0,
    numbers: Sequence[int] = (),
    choices: int = 1,
    size: int | None = None,
) -> TaskBatch:
    """Put each row of some examples into a row of a batch, and mask it.

    Args:
        rows: of some examples.
        length: columns.
        pad_id: the id written where there is no token.
        masking: of the tokens; None: none.
        step: of the optimizer, which keys the masks together with `numbers`.
        numbers: of the examples in the whole batch.
        choices: rows of an example.
        size: examples of the batch, further ones than there are do not count; None: as
            many as there are.
    """
    count = len(rows.labels)
    size = count if size is None else size
    tokens = pad(rows.ids, length=length, rows=size * choices, pad_id=pad_id)
    masked = None
    if masking is not None:
        corrupted = corrupt(
            np.asarray(tokens.ids),
            masking,
            segment_ids=np.asarray(tokens.segment_ids),
            step=step,
            # Rows that do not count hold nothing to choose, whatever keys them.
            row_numbers=[*numbers, *[0] * (size - count)],
        )
        tokens = corrupted.tokens
        masked = MaskedTokens(corrupted.positions, corrupted.targets, corrupted.weights)
    if rows.types is not None:
        types = pad(rows.types, length=length, rows=size * choices, pad_id=0).ids
        tokens = dataclasses.replace(tokens, type_ids=types)
    if isinstance(rows.labels, np.ndarray):
        labels = np.zeros((size, *rows.labels.shape[1:]), rows.labels.dtype)
        labels[:count] = rows.labels
    else:
        labels = pad(rows.labels, length=length, rows=size, pad_id=NO_LABEL).ids
    return TaskBatch(tokens, labels, np.arange(size) < count, masked)


def packed(
    batch: TaskBatch, plans: Sequence[Packing], *, rows: int, pad_id: int
) -> TaskBatch:
    """Put the texts of a batch into fewer rows, which hold several each.

    Args:
        batch: each row of it one text, or nothing.
        plans: where the texts go that are there, of each of its equal parts.
        rows: of each part, at least as many as any plan has.
        pad_id: the id written where there is no token.
    """
    there = np.asarray(batch.tokens.mask)
    columns = there.shape[1]
    texts = there.any(axis=1).reshape(len(plans), -1)
    begins, slots = np.zeros((2, *texts.shape), np.int32)
    for part, plan in enumerate(plans):
        begins[part, texts[part]] = plan.row * columns + plan.begins()
        slots[part, texts[part]] = plan.slot
    columns_of = np.arange(columns, dtype=np.int32)
    places = np.where(there, begins.reshape(-1, 1) + columns_of, ABSENT)
    first_row = rows * np.repeat(np.arange(len(plans)), texts.shape[1])
    everywhere = (first_row[:, None] * columns + places)[there]

    def laid_out(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full(len(plans) * rows * columns, fill, np.int32)
        out[everywhere] = values[there]
        return out.reshape(-1, columns)

    segments = np.broadcast_to(slots.reshape(-1, 1) + 1, there.shape)
    types = batch.tokens.type_ids
    tokens = Tokens(
        laid_out(np.asarray(batch.tokens.ids), pad_id),
        laid_out(segments, PADDING),
        None if types is None else laid_out(np.asarray(types), 0),
        texts=plans[0].slots,
    )
    return dataclasses.replace(batch, tokens=tokens, places=places)
