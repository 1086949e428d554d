"""Which records make up the batch of a step: a pure function of the step number.

Every batch comes from one source (Nomic Embed, arXiv:2402.01613, section 4.2). With
W_k the cumulated and W the total shares of the sources, the first b blocks of T steps
hold

    C_k(b) = floor(b T W_k / W) - floor(b T W_(k-1) / W)

batches of source k: whole numbers that add up to b T, never one away from its share.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from nomic_jax.data.permutation import permute
from nomic_jax.fields import nearest
from nomic_jax.sources.source import stable_hash

Policy = Literal["proportional", "temperature", "weights", "round_robin"]

BLOCK = 1024  # steps of a block, of the policies whose blocks are no epochs
_WHOLE = 2**32  # shares are whole numbers of the largest one's 2**32-th parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the batches of a run are shared among its sources.

    `proportional`: each source gives its whole batches once in an epoch, as in the
    paper. `temperature`: in proportion to size ** exponent. `weights`: as given.
    `round_robin`: in turn.
    """

    policy: Policy = "proportional"
    exponent: float = 1.0  # of temperature: 0 makes all sources equal
    weights: tuple[tuple[str, float], ...] = ()  # of each source, by name; 0: unused

    def __post_init__(self) -> None:
        """Refuse numbers that are no shares, and weights that nobody would look at.

        Raises:
            ValueError: with the number.
        """
        if not 0 <= self.exponent < math.inf:
            raise ValueError(f"exponent={self.exponent} must be 0 or more, and finite")
        if bool(self.weights) != (self.policy == "weights"):
            raise ValueError(
                f"sampling policy {self.policy!r} with {len(self.weights)} weights; "
                "give weights with the policy 'weights', and only there"
            )
        bad = [f"{n}={w}" for n, w in self.weights if not 0 <= w < math.inf]
        if bad:
            raise ValueError(
                f"sampling weights must be 0 or more, and finite: {', '.join(bad)}"
            )
        if self.weights and not any(weight for _, weight in self.weights):
            raise ValueError("all sampling weights are 0; give one source a share")


class Place(NamedTuple):
    """Where a step stands in its source."""

    source: str
    epoch: int  # times the source has been gone through before
    batch: int  # of this epoch


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps to records, for sources of known sizes.

    In one epoch of its own each source gives `size // batch_size` batches and repeats
    no record; the `size % batch_size` records that fill no batch, another choice in
    each epoch, are left out. The order of a source depends on the seed and its own name
    and size; other sources do not move it.
    """

    sizes: tuple[tuple[str, int], ...]  # name and number of records of each source
    batch_size: int
    seed: int
    sampling: Sampling = Sampling()

    @classmethod
    def over(
        cls,
        sizes: Mapping[str, int],
        *,
        batch_size: int,
        seed: int,
        sampling: Sampling | None = None,
    ) -> "Schedule":
        """Plan over sources given by name; proportionally unless told otherwise.

        Raises:
            ValueError: no source is given, some hold fewer records than one batch, or
                weights do not name the sources there are.
        """
        return cls(tuple(sizes.items()), batch_size, seed, sampling or Sampling())

    def __post_init__(self) -> None:
        """Refuse what fills no batch; see `over`."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if not self.sizes:
            raise ValueError("there is no source to take batches from; name one")
        weights = _weights(self)
        short = [
            f"{name} has {size}"
            for (name, size), weight in zip(self.sizes, weights, strict=True)
            if size < self.batch_size and weight
        ]
        if short:
            raise ValueError(
                f"a batch takes {self.batch_size} records of one source; "
                f"{', '.join(short)}; use a smaller batch or more data"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps that all records fill: in proportion, each source exactly once.

        Under another policy some sources come up more than once in as many steps, and
        others not to the end.
        """
        return sum(size // self.batch_size for _, size in self.sizes)

    def place(self, step: int) -> Place:
        """Tell the source, its epoch and the batch of the epoch that a step takes.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"step={step} must be 0 or more")
        if self.sampling.policy == "round_robin":
            number, source = divmod(step, len(self.sizes))
        else:
            source, number = self._in_block(*divmod(step, self._block))
        name, size = self.sizes[source]
        return Place(name, *divmod(number, size // self.batch_size))

    def at(
        self, step: int, rows: slice = slice(None)
    ) -> tuple[str, Int64[np.ndarray, " rows"]]:
        """Return the source of a step's batch and the records in it.

        Args:
            step: optimizer steps done before this one.
            rows: which rows of the batch to tell the records of, as a host needs.

        Returns:
            The source's name and record numbers, `batch_size` of them or those of
            `rows`.
        """
        name, epoch, batch = self.place(step)
        first = batch * self.batch_size
        places = np.arange(first, first + self.batch_size)[rows]
        key = (self.seed, epoch, stable_hash(name))
        return name, permute(places, dict(self.sizes)[name], key)

    @functools.cached_property
    def _shares(self) -> tuple[int, ...]:
        """Shares of the steps as whole numbers, cumulated: 0, W_1, ..., W."""
        shares = _weights(self)
        if self.sampling.policy != "proportional":
            largest = max(shares)
            shares = [math.ceil(share / largest * _WHOLE) for share in shares]
        return (0, *itertools.accumulate(int(share) for share in shares))

    @functools.cached_property
    def _block(self) -> int:
        """Steps of a block: an epoch, or few enough to go through in no time."""
        return self._shares[-1] if self.sampling.policy == "proportional" else BLOCK

    def _in_block(self, block: int, place: int) -> tuple[int, int]:
        """Return a step's source and how many batches the source gave before."""
        before, after = self._given(block), self._given(block + 1)
        limits = [b - a for a, b in zip(before, after, strict=True)]
        one_epoch = self.sampling.policy == "proportional"
        if one_epoch:
            drawn = permute(np.array([place]), self._block, (self.seed, block))
        else:
            drawn = _order(self._block, self.seed, block)[: place + 1]
        source = int(np.searchsorted(limits, drawn[-1], "right")) - 1
        start, stop = limits[source], limits[source + 1]
        if one_epoch:  # its batches may come in any order
            earlier = int(drawn[-1]) - start
        else:  # an epoch may end within the block: batches come one after another
            seen = drawn[:-1]
            earlier = int(np.count_nonzero((seen >= start) & (seen < stop)))
        return source, before[source + 1] - before[source] + earlier

    def _given(self, blocks: int) -> list[int]:
        """Count the batches of the first blocks by source, cumulated: 0, ..., all."""
        steps = blocks * self._block
        return [steps * share // self._shares[-1] for share in self._shares]


# Remembered for speed alone.
@functools.lru_cache(maxsize=4)
def _order(length: int, seed: int, block: int) -> np.ndarray:
    order = permute(np.arange(length), length, (seed, block))
    order.flags.writeable = False
    return order


def _weights(schedule: Schedule) -> list[float]:
    """Return each source's weight under the schedule's policy."""
    sampling = schedule.sampling
    sizes = dict(schedule.sizes)
    if sampling.policy == "proportional":
        return [size // schedule.batch_size or 1 for size in sizes.values()]
    if sampling.policy == "round_robin":
        return [1] * len(sizes)
    if sampling.policy == "temperature":
        largest = max(sizes.values())
        return [(size / largest) ** sampling.exponent for size in sizes.values()]
    given = dict(sampling.weights)
    for name in given:
        if name not in sizes:
            raise ValueError(
                f"a weight is given for {name!r}, which is no source: "
                f"{nearest(name, sizes)}"
            )
    for name in sizes:
        if name not in given:
            raise ValueError(
                f"source {name!r} has no weight; give it one, 0 to leave it out: "
                f"{nearest(name, given)}"
            )
    return [given[name] for name in sizes]
