"""Which records make up the batch of a step: a pure function of the step number.

Every batch comes from one source (Nomic Embed, arXiv:2402.01613, section 4.2). With
W_k the cumulative and W the total shares of the sources, the first b blocks of T steps
hold

    C_k(b) = floor(b T W_k / W) - floor(b T W_(k-1) / W)

batches of source k: whole numbers that add up to b T, never one away from its share.

Records are taken in a seeded order that needs no table: a Feistel network (Luby and
Rackoff 1988, doi:10.1137/0217022) over a rectangle of a rows and b columns that holds
range(size). The two digits of an index are shifted in turn by a keyed hash of the
other, which can be undone, so no two indices collide. What lands beyond `size` goes
through again until it lands inside (Black and Rogaway 2002,
doi:10.1007/3-540-45760-7_9).

A config may list its sources by name, prefix and number of pairs (arXiv:2402.01613,
Tables 3 and 7); stores that differ from the list are refused.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt64

from nomic_jax.config import did_you_mean
from nomic_jax.data.sources.source import stable_hash
from nomic_jax.data.store.records import Kind
from nomic_jax.data.store.store import Store

LARGEST = 2**62  # of a size: its square root then fits the 32 bits of a digit
ROUNDS = 8  # shifts of a digit; after 4, distances of neighbours are still uneven
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)


def permute(
    index: Int64[np.ndarray, "n"], size: int, key: Sequence[int]
) -> Int64[np.ndarray, "n"]:
    """Say which record is at each place of a seeded order of `range(size)`.

    Every place has a record of its own. The values are the same on every platform.

    Args:
        index: places, each in `range(size)`.
        size: number of records.
        key: integers that choose the order; (1,) and (1, 0) choose different ones.

    Raises:
        ValueError: the size is not in 1 ... 2**62, or a place is outside it.
    """
    if not 1 <= size <= LARGEST:
        raise ValueError(f"size={size} is not in the range 1 to 2**62")
    if index.size and not 0 <= index.min() <= index.max() < size:
        raise ValueError(
            f"places {index.min()} to {index.max()} are not all in range({size})"
        )
    rows = math.isqrt(size - 1) + 1
    sides = (rows, -(-size // rows))
    keys = round_keys(key, ROUNDS)
    found = _shuffled(index.astype(np.uint64), sides, keys)
    while len(outside := np.flatnonzero(found >= np.uint64(size))):
        found[outside] = _shuffled(found[outside], sides, keys)
    return found.astype(np.int64)


def round_keys(key: Sequence[int], count: int) -> list[np.uint64]:
    """Draw `count`, at most 8, numbers of 64 bits from a key of integers."""
    # Each integer takes as many bytes as any other, so no two keys spell the same.
    spelled = b"".join(int(part).to_bytes(16, "little", signed=True) for part in key)
    digest = hashlib.blake2b(spelled, digest_size=8 * count).digest()
    return list(np.frombuffer(digest, "<u8").astype(np.uint64))


def hash32(
    values: UInt64[np.ndarray, "*n"], key: np.uint64
) -> UInt64[np.ndarray, "*n"]:
    """Hash each number to 32 bits that look random, by SplitMix64's multipliers.

    Steele et al. 2014 (doi:10.1145/2660193.2660195); the upper half of a product is
    its better half, so nothing is left to do after the second.
    """
    first, second = _MULTIPLIERS
    values = values ^ key
    values *= first
    values ^= values >> _HALF
    values *= second
    values >>= _HALF
    return values


def _shuffled(index: np.ndarray, sides: tuple[int, int], keys: Sequence[np.uint64]):
    columns = np.uint64(sides[1])
    high = index // columns
    digits = [high, index - high * columns]
    for number, key in enumerate(keys):
        turned, side = number % 2, np.uint64(sides[number % 2])
        # The hash as a fraction of 2**32, times the side.
        shift = hash32(digits[1 - turned], key)
        shift *= side
        shift >>= _HALF
        shift += digits[turned]
        # Below the side, the difference wraps round to a huge number.
        digits[turned] = np.minimum(shift, shift - side)
    return digits[0] * columns + digits[1]


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
    """Where a step is in its source."""

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
        """Shares of the steps as whole numbers, cumulative: 0, W_1, ..., W."""
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
        """Count the batches of the first blocks by source, cumulative: 0, ..., all."""
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
                f"a weight is given for {name!r}, which is not a source: "
                f"{did_you_mean(name, sizes)}"
            )
    for name in sizes:
        if name not in given:
            raise ValueError(
                f"source {name!r} has no weight; give it one, 0 to leave it out: "
                f"{did_you_mean(name, given)}"
            )
    return [given[name] for name in sizes]


def host_problems(host: int, hosts: int) -> list[str]:
    """Say what is wrong with a host's number, which counts from 0."""
    if 0 <= host < hosts:
        return []
    return [f"host={host} of hosts={hosts}: hosts are numbered from 0 to hosts - 1"]


def store_problems(
    stores: Mapping[str, Store], schedule: Schedule, kind: Kind
) -> list[str]:
    """Say which scheduled sources have no store, or one of other or fewer records."""
    problems = []
    for name, size in schedule.sizes:
        if name not in stores:
            problems.append(f"source {name!r} is scheduled and has no store")
        elif (found := stores[name].manifest.kind) != kind:
            problems.append(f"store {name!r} holds {found}, not {kind}; prepare {kind}")
        elif len(stores[name]) < size:
            problems.append(
                f"source {name!r} is scheduled with {size} records, its store has only "
                f"{len(stores[name])}"
            )
    return problems


AnyStore = TypeVar("AnyStore", bound=Store)


@dataclasses.dataclass(frozen=True)
class PairSourceConfig:
    """A source of pairs, as a config lists it."""

    name: str  # of its store
    query_prefix: str  # that its store was prepared with: "search_query: "
    document_prefix: str  # of its negatives too
    pairs: int  # that are used: the first ones of its store, which may hold more

    def __post_init__(self) -> None:
        """Refuse a source of nothing.

        Raises:
            ValueError: with the number.
        """
        if self.pairs < 1:
            raise ValueError(f"{self.name}: pairs={self.pairs} must be at least 1")


def check_names(sources: Sequence[PairSourceConfig]) -> None:
    """Refuse a list that names a source twice.

    Raises:
        ValueError: with the names.
    """
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sources are listed twice: {', '.join(twice)}")


def listed_stores(
    sources: Sequence[PairSourceConfig], stores: Mapping[str, AnyStore]
) -> dict[str, AnyStore]:
    """Return the stores in the order in which a config lists their sources.

    Args:
        sources: of the config; none: whatever the stores hold is taken, in their order.
        stores: of pairs, by source.

    Raises:
        ValueError: a listed store is missing, one that is there is not listed, or one
            has other prefixes or too few pairs; every problem is named.
    """
    if not sources:
        return dict(stores)
    listed = [source.name for source in sources]
    problems = [
        f"{name!r} has a store and is not listed: {did_you_mean(name, listed)}"
        for name in stores
        if name not in listed
    ]
    for source in sources:
        if source.name in stores:
            problems += _differences(source, stores[source.name])
        else:
            problems.append(f"{source.name!r} is listed and has no store")
    if problems:
        raise ValueError(
            f"the stores are not the {len(sources)} sources that the config lists: "
            f"{'; '.join(problems)}; prepare them as the config says, or list in it "
            "what there is"
        )
    return {name: stores[name] for name in listed}


def pairs_taken(
    sources: Sequence[PairSourceConfig], stores: Mapping[str, Store]
) -> dict[str, int]:
    """Return how many records of each store are used, the first ones.

    The published numbers are whole batches of each file of a source, so the files hold
    some thousands more.
    """
    if sources:
        return {source.name: source.pairs for source in sources}
    return {name: len(store) for name, store in stores.items()}


def _differences(source: PairSourceConfig, store: Store) -> list[str]:
    """Say in what a store is not the source that is listed."""
    rule = store.manifest.rule
    found = [
        f"{source.name!r} has {side}={rule.get(side)!r}, {getattr(source, side)!r} is "
        "listed"
        for side in ("query_prefix", "document_prefix")
        if rule.get(side) != getattr(source, side)
    ]
    if len(store) < source.pairs:
        found.append(
            f"{source.name!r} has {len(store):,} pairs, {source.pairs:,} are listed"
        )
    return found
