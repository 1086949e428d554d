"""A seeded order of any number of records, without a table of them.

A Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022) over a rectangle of a
rows and b columns that holds range(size): the two digits of an index are by turns
shifted by a keyed hash of the other, which can be undone, so no two indices collide.
What lands beyond `size` goes through again until it lands inside (Black and Rogaway
2002, doi:10.1007/3-540-45760-7_9).
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

LARGEST = 2**62  # of a size: its square root then fits the 32 bits of a digit
ROUNDS = 8  # shifts of a digit; after 4, distances of neighbours are still uneven

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)


def permute(
    index: Int64[np.ndarray, "n"], size: int, key: Sequence[int]
) -> Int64[np.ndarray, "n"]:
    """Say which record stands at each place of a seeded order of `range(size)`.

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
