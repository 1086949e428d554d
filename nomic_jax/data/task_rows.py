"""Rows of token ids and their labels, all examples of a task in a few long arrays."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int32, Int64


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
    def longest(self) -> int:
        """Tokens that no row has more of."""
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
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(np.diff(self.offsets).max())

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
