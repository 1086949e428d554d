"""Masked-language-model batches: documents packed into rows, then corrupted.

BERT's rule (Devlin et al. 2018, arXiv:1810.04805, section 3.1) at Nomic's rate of 30 %
(arXiv:2402.01613, section 3.3): of the chosen tokens 80 % become [MASK], 10 % a random
token, 10 % stay. Special tokens are never chosen.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from nomic_jax.batch import MlmBatch, Tokens

_MASKED, _RANDOM = 0.8, 0.9  # cumulated shares of the two corruptions


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


def pack(
    documents: Iterable[np.ndarray], *, row_length: int
) -> Int32[np.ndarray, "rows S"]:
    """Write documents one after another into rows; the last, incomplete row is lost.

    As in the paper a row may begin within a document, and its documents see each other.

    Args:
        documents: token ids with their special tokens.
        row_length: tokens of a row.
    """
    stream = np.concatenate([np.zeros(0, np.int32), *documents])
    rows = len(stream) // row_length
    return stream[: rows * row_length].reshape(rows, row_length)


def slots(row_length: int, rate: float) -> int:
    """Number of positions a row has room to predict.

    The count of masked tokens is binomial; room for four standard deviations above the
    mean turns away a token in one row of 30,000.
    """
    mean = rate * row_length
    room = mean + 4 * (mean * (1 - rate)) ** 0.5
    return min(row_length, int(np.ceil(room)))


def corrupt(
    rows: Int32[np.ndarray, "B S"],
    masking: Masking,
    *,
    step: int,
    row_numbers: Sequence[int] | np.ndarray,
) -> MlmBatch:
    """Choose and corrupt tokens of packed rows.

    The choice in a row is keyed by (seed, step, number of the row in the global batch),
    so it is the same however the batch is spread over hosts, and no two rows share it.

    Args:
        rows: token ids without padding.
        masking: rate and ids.
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
    return MlmBatch(Tokens(ids, np.ones_like(ids)), positions, targets, weights)
