"""A batch in parts that fit the memory: kept are inputs and results, not activations.

Gradient caching (Gao et al. 2021, arXiv:2101.06983, section 3.2) is a map over
rematerialised parts: the results of all parts meet in one loss, and the backward pass
computes each part's activations again. Where the loss is a sum over rows, as that of
masked tokens, a part's gradient needs no other part: it is made with the part's value,
and nothing is computed twice. Either gradient is that of the whole batch.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

Rows = TypeVar("Rows")
Result = TypeVar("Result")
Model = TypeVar("Model")
Fixed = TypeVar("Fixed")
Summed: TypeAlias = tuple[Float32[Array, ""], Any]


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
    return jax.lax.map(jax.checkpoint(function), _split(rows, total, most))


def summed_in_microbatches(
    function: Callable[[Model, Rows, Fixed], Summed],
    model: Model,
    rows: Rows,
    fixed: Fixed,
    *,
    most: int | None,
) -> Summed:
    """Sum a function of a model and rows over parts of the rows.

    Args:
        function: of the model, some rows and `fixed`: a sum over the rows, which has a
            gradient, and a tree of other sums, which have none. Rows of zeros, which
            fill up the last part, must add nothing to either.
        model: the tree of parameters that the gradient is in.
        rows: a tree of arrays that share their leading axis.
        fixed: a tree of arrays that all parts are given.
        most: rows of a part, at most; None: the function gets all rows at once.
    """
    total = jax.tree.leaves(rows)[0].shape[0]
    if most is None or total <= most:
        return function(model, rows, fixed)

    @jax.custom_vjp
    def over_parts(model, parts, fixed):
        return _added(jax.lax.map(lambda part: function(model, part, fixed), parts))

    def with_gradient(model, parts, fixed):
        def add(sums, part):
            both = jax.value_and_grad(function, has_aux=True)
            value, gradient = both(model, part, fixed)
            return jax.tree.map(jnp.add, sums, gradient), value

        # On a mesh these differ between the devices that the parameters do.
        zeros = jax.tree.map(lambda array: jnp.where(False, array, 0), model)
        gradient, values = jax.lax.scan(add, zeros, parts)
        return _added(values), gradient

    def scaled(gradient, cotangent):
        return jax.tree.map(lambda each: cotangent[0] * each, gradient), None, None

    over_parts.defvjp(with_gradient, scaled)
    return over_parts(model, _split(rows, total, most), fixed)


def _added(values: Any) -> Any:
    return jax.tree.map(lambda each: each.sum(axis=0), values)


def _split(rows: Rows, total: int, most: int) -> Rows:
    """Give the arrays a leading axis of parts, with rows of zeros at the end."""
    count, size = parts(total, most)

    def split(array: jax.Array) -> jax.Array:
        extra = [(0, count * size - total), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, extra).reshape(count, size, *array.shape[1:])

    return jax.tree.map(split, rows)
