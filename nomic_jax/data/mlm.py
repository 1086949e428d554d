"""Masked-language-model batches: packed rows out of a store, corrupted.

BERT's rule (Devlin et al. 2018, arXiv:1810.04805, section 3.1) at Nomic's rate of 30 %
(arXiv:2402.01613, section 3.3): of the chosen tokens 80 % become [MASK], 10 % a random
token, 10 % stay. Special tokens are never chosen. The host does it, ahead of the step.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32

from nomic_jax.batch import MlmBatch, StepBatch, Tokens
from nomic_jax.data.schedule import Schedule, host_problems, store_problems
from nomic_jax.data.store.store import Store

# Whether the documents of a packed row see one another, as in the paper, or not.
Documents = Literal["joined", "separate"]

_MASKED, _RANDOM = 0.8, 0.9  # cumulative shares of the two corruptions


@dataclasses.dataclass(frozen=True)
class Masking:
    """How rows are corrupted."""

    rate: float  # share of the ordinary tokens that is to be predicted
    mask_id: int
    vocab_size: int  # random replacements are drawn below it
    special_ids: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        """Refuse a rate that leaves nothing to predict, or nothing to predict from.

        Raises:
            ValueError: the rate is outside (0, 1).
        """
        if not 0 < self.rate < 1:
            raise ValueError(f"the masking rate is {self.rate}; it must be in (0, 1)")


def slots(row_length: int, rate: float) -> int:
    """Number of positions a row has room to predict.

    The count of masked tokens is binomial; room for four standard deviations above the
    mean turns away a token in one row of 30,000.
    """
    mean = rate * row_length
    room = mean + 4 * (mean * (1 - rate)) ** 0.5
    return min(row_length, int(np.ceil(room)))


def texts_per_row(documents: Documents) -> int | None:
    """Return the most texts that a row holds: one that is joined, or any number."""
    return 1 if documents == "joined" else None


def corrupt(
    rows: Int32[np.ndarray, "B S"],
    masking: Masking,
    *,
    segment_ids: Int32[np.ndarray, "B S"] | None = None,
    step: int,
    row_numbers: Sequence[int] | np.ndarray,
) -> MlmBatch:
    """Choose and corrupt tokens of packed rows.

    The choice in a row is keyed by (seed, step, number of the row in the global batch),
    so it is the same however the batch is spread over hosts, and no two rows share it.

    Args:
        rows: token ids without padding.
        masking: rate and ids.
        segment_ids: of the documents in each row; None: each row is one text.
        step: the optimizer step.
        row_numbers: each row's number in the global batch.
    """
    length = rows.shape[1]
    count = slots(length, masking.rate)
    ids = rows.copy()
    positions = np.zeros((len(rows), count), np.int32)
    targets = np.zeros((len(rows), count), np.int32)
    weights = np.zeros((len(rows), count), bool)
    ordinary = ~np.isin(rows, masking.special_ids)
    for i, row_number in enumerate(row_numbers):
        rng = np.random.default_rng((masking.seed, step, int(row_number)))
        chance, kind = rng.random((2, length))
        random_ids = rng.integers(masking.vocab_size, size=length, dtype=np.int32)
        chosen = np.flatnonzero(ordinary[i] & (chance < masking.rate))[:count]
        positions[i, : len(chosen)] = chosen
        targets[i, : len(chosen)] = rows[i, chosen]
        weights[i, : len(chosen)] = True
        ids[i, chosen] = np.where(
            kind[chosen] < _MASKED,
            masking.mask_id,
            np.where(kind[chosen] < _RANDOM, random_ids[chosen], rows[i, chosen]),
        )
    if segment_ids is None:
        tokens = Tokens(ids, np.ones_like(ids), texts=texts_per_row("joined"))
    else:
        tokens = Tokens(ids, segment_ids, texts=texts_per_row("separate"))
    return MlmBatch(tokens, positions, targets, weights)


@dataclasses.dataclass(frozen=True)
class MlmBatches:
    """The batch of each step: a pure function that worker processes can be sent."""

    stores: Mapping[str, Store]  # of packed rows, by source
    schedule: Schedule
    masking: Masking
    row_length: int  # tokens of a row, as the stores have them
    documents: Documents = "joined"
    host: int = 0  # which part of each batch is built here
    hosts: int = 1

    def __post_init__(self) -> None:
        """Refuse stores of other rows, and batches that hosts cannot share.

        Raises:
            ValueError: with the names and numbers.
        """
        problems = [
            *host_problems(self.host, self.hosts),
            *store_problems(self.stores, self.schedule, "rows"),
        ]
        if self.schedule.batch_size % max(self.hosts, 1):
            problems.append(
                f"batch_size={self.schedule.batch_size} does not split among "
                f"{self.hosts} hosts; use a multiple of it"
            )
        for name, store in self.stores.items():
            found = store.manifest.rule.get("row_length")
            if not problems and found != self.row_length:
                problems.append(
                    f"store {name!r} has rows of {found} tokens, row_length="
                    f"{self.row_length} is asked for; prepare the text again"
                )
        if problems:
            raise ValueError("; ".join(problems))

    def __call__(self, step: int) -> StepBatch:
        """Build this host's rows of a step's batch."""
        share = self.schedule.batch_size // self.hosts
        mine = range(self.host * share, (self.host + 1) * share)
        source, records = self.schedule.at(step, slice(mine.start, mine.stop))
        ids = np.empty((share, self.row_length), np.int32)
        separate = self.documents == "separate"
        segment_ids = np.ones_like(ids) if separate else None
        for row, pieces in enumerate(self.stores[source].read(records)):
            ids[row] = np.concatenate(pieces)
            if segment_ids is not None:
                numbers = np.arange(1, len(pieces) + 1)
                segment_ids[row] = np.repeat(numbers, [len(piece) for piece in pieces])
        batch = corrupt(
            ids, self.masking, segment_ids=segment_ids, step=step, row_numbers=mine
        )
        return StepBatch(source, batch, num_tokens=ids.size, num_columns=ids.size)
