"""Rows of token ids and their labels, all examples of a task in a few long arrays.

An epoch is all examples in an order of its own; one epoch follows another without a
gap, so every batch is full and every example comes up once an epoch.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from nomic_jax.batch import MaskedTokens, StepBatch, TaskBatch
from nomic_jax.data.fitting import host_problems
from nomic_jax.data.mlm import Masking, corrupt
from nomic_jax.data.permutation import permute
from nomic_jax.data.task_examples import NO_LABEL
from nomic_jax.tokenizer import bucket, pad


class Rows(NamedTuple):
    """Some examples' rows, not yet padded."""

    ids: Sequence[np.ndarray]  # one row an example, or one a choice
    types: Sequence[np.ndarray] | None  # None: the model has one type
    labels: np.ndarray | Sequence[np.ndarray]  # of examples, or of each row's tokens


@runtime_checkable
class RowSource(Protocol):
    """Examples by number; a pure function that worker processes can be sent."""

    @property
    def choices(self) -> int:
        """Rows of an example."""
        ...

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    @property
    def digest(self) -> str:
        """Digest of all rows and labels."""
        ...

    def rows(self, examples: Int64[np.ndarray, "B"], step: int) -> Rows:
        """Return the rows of a batch's examples, in their order."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TaskRows:
    """Encoded examples; rows lie one after another."""

    offsets: Int64[np.ndarray, "bounds"]  # where rows begin, and the last one ends
    ids: Int32[np.ndarray, "tokens"]
    types: Int32[np.ndarray, "tokens"] | None
    # Of examples, or where `of_tokens`, of the tokens.
    labels: Int[np.ndarray, "labelled *each"] | Float[np.ndarray, "labelled *each"]
    of_tokens: bool = False
    choices: int = 1

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        labels: np.ndarray,
        *,
        of_tokens: bool = False,
        choices: int = 1,
    ) -> "TaskRows":
        """Join rows.

        Args:
            ids: of each row.
            types: of each row's tokens; None where the model has one type.
            labels: of the examples, or of all tokens.
            of_tokens: whether it is the tokens that have labels.
            choices: rows of an example.
        """
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])

        def joined(rows):
            flat = (token for row in rows for token in row)
            return np.fromiter(flat, np.int32, count=int(offsets[-1]))

        return cls(
            offsets.astype(np.int64),
            joined(ids),
            None if types is None else joined(types),
            labels,
            of_tokens,
            choices,
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return (len(self.offsets) - 1) // self.choices

    @property
    def digest(self) -> str:
        """BLAKE2b of the arrays, in 32 hex digits."""
        return digest_of(self.offsets, self.ids, self.types, self.labels)

    def rows(self, examples: Int64[np.ndarray, "B"], step: int = 0) -> Rows:
        """Return the rows of some examples; they are the same in every step."""
        numbers = examples[:, None] * self.choices + np.arange(self.choices)
        spans = [slice(*self.offsets[i : i + 2]) for i in numbers.ravel()]
        return Rows(
            [self.ids[span] for span in spans],
            None if self.types is None else [self.types[span] for span in spans],
            [self.labels[span] for span in spans]
            if self.of_tokens
            else self.labels[examples],
        )


def digest_of(*arrays: np.ndarray | None) -> str:
    """Digest arrays, in 32 hex digits."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(b"" if array is None else np.ascontiguousarray(array).data)
    return found.hexdigest()


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
    host: int = 0  # whose part of each batch is built here
    hosts: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that hosts cannot share.

        Raises:
            ValueError: with the numbers.
        """
        problems = host_problems(self.host, self.hosts)
        if not problems and self.batch_size % self.hosts:
            problems.append(
                f"batch_size={self.batch_size} does not split among {self.hosts} hosts"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def __call__(self, step: int) -> StepBatch:
        """Build this host's examples of a step's batch.

        All hosts look at all rows, as the longest of them says how many columns there
        are.
        """
        everything = self.source.rows(self.examples(step), step)
        longest = max(len(row) for row in everything.ids)
        share = self.batch_size // self.hosts
        mine = range(self.host * share, (self.host + 1) * share)
        batch = padded(
            part(everything, mine, self.source.choices),
            length=min(bucket(longest), self.max_length),
            pad_id=self.pad_id,
            masking=self.masking,
            step=step,
            numbers=mine,
            choices=self.source.choices,
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


def part(rows: Rows, examples: range, choices: int) -> Rows:
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
    """Put rows into a batch, and mask it.

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
