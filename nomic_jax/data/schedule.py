"""Which records make up the batch of a step: a pure function of the step number.

Every batch comes from one source. Within a block of steps each source gets as many
batches as its records fill, in a shuffled order; a block is one epoch of every source
(Nomic Embed, arXiv:2402.01613, section 4.2: sources are sampled in proportion to size).
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps to records, for sources of known sizes.

    In one epoch each source gives `size // batch_size` batches without repeating a
    record; the records that fill no batch, another choice in each epoch, are left out.
    """

    sizes: tuple[tuple[str, int], ...]  # name and number of records of each source
    batch_size: int
    seed: int

    @classmethod
    def over(
        cls, sizes: Mapping[str, int], *, batch_size: int, seed: int
    ) -> "Schedule":
        """Plan over sources given by name.

        Raises:
            ValueError: no source is given, or some hold fewer records than one batch.
        """
        short = [f"{name} has {n}" for name, n in sizes.items() if n < batch_size]
        if short or not sizes:
            raise ValueError(
                f"a batch takes {batch_size} records of one source; "
                f"{', '.join(short) or 'there is no source'}; "
                "use a smaller batch or more data"
            )
        return cls(tuple(sizes.items()), batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every source is gone through once."""
        return sum(size // self.batch_size for _, size in self.sizes)

    def at(self, step: int) -> tuple[str, np.ndarray]:
        """Return the source of a step's batch and the records in it.

        Args:
            step: optimizer steps done before this one.

        Returns:
            The source's name and int64 record numbers, `batch_size` of them.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _batch_order(self, epoch)
        source = int(order[place])
        nth = int(np.count_nonzero(order[:place] == source))
        records = _record_order(self.sizes[source][1], self.seed, epoch, source)
        return (
            self.sizes[source][0],
            records[nth * self.batch_size : (nth + 1) * self.batch_size],
        )


# Orders are remembered for speed alone: each is a function of its arguments. Stream 0
# of an epoch orders its batches, stream 1 + i the records of source i.
@functools.lru_cache(maxsize=4)
def _batch_order(schedule: Schedule, epoch: int) -> np.ndarray:
    counts = [size // schedule.batch_size for _, size in schedule.sizes]
    order = np.repeat(np.arange(len(counts)), counts)
    return _shuffled(order, (schedule.seed, epoch, 0))


@functools.lru_cache(maxsize=64)
def _record_order(size: int, seed: int, epoch: int, source: int) -> np.ndarray:
    return _shuffled(np.arange(size), (seed, epoch, 1 + source))


def _shuffled(values: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    order = np.random.default_rng(key).permutation(values)
    order.flags.writeable = False  # callers get views of what is remembered
    return order
