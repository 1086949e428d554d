"""A batch in parts that fit the memory: kept are inputs and results, not activations.

Gradient caching (Gao et al. 2021, arXiv:2101.06983, section 3.2) is a map over
rematerialised parts: the results of all parts meet in one loss, and the backward pass
computes each part's activations again. The gradient is that of the whole batch.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Rows = TypeVar("Rows")
Result = TypeVar("Result")


def parts(total: int, most: int) -> tuple[int, int]:
    """Return the number of equal parts, and the rows of each, with few rows added.

    Ten rows of which three go at once are four parts with two rows of zeros, a fifth of
    the work again, or five parts with none: up to a quarter more parts are taken where
    that leaves fewer rows to add.
    """
    least = -(-total // most)
    counts = range(least, min(total, least + least // 4) + 1)
    count = min(counts, key=lambda count: count * -(-total // count))
    return count, -(-total // count)


def in_microbatches(
    function: Callable[[Rows], Result], rows: Rows, *, most: int | None
) -> Result:
    """Apply a function to parts of the rows, one after another.

    Args:
        function: of some rows.
        rows: a tree of arrays that share their leading axis.
        most: rows of a part, at most; None: the function gets all rows at once.

    Returns:
        The parts' results, stacked on a leading axis. Where the rows do not divide
        into equal parts (see `parts`), rows of zeros are added at the end.
    """
    leaves = jax.tree.leaves(rows)
    total = leaves[0].shape[0]
    if most is None or total <= most:
        return jax.tree.map(lambda result: result[None], function(rows))
    count, size = parts(total, most)

    def split(array: jax.Array) -> jax.Array:
        extra = [(0, count * size - total), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, extra).reshape(count, size, *array.shape[1:])

    return jax.lax.map(jax.checkpoint(function), jax.tree.map(split, rows))
