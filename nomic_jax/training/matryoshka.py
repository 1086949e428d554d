"""Losses of an embedding's prefixes (Kusupati et al. 2022, arXiv:2205.13147).

The loss of a batch is the sum over dimensions of weight times loss (section 3, equation
1), each prefix scaled to unit length; a sum, not a mean, so every dimension that joins
makes the gradient larger.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def check_dims(dims: Sequence[int], weights: Sequence[float], width: int) -> None:
    """Refuse dimensions that a vector does not have, or weights that do not match.

    Raises:
        ValueError: with the dimensions.
    """
    if any(not 1 <= dim <= width for dim in dims) or len(set(dims)) < len(dims):
        raise ValueError(
            f"matryoshka dims {tuple(dims)} must be different numbers from 1 to the "
            f"embedding's width, {width}"
        )
    if len(weights) != len(dims):
        raise ValueError(
            f"{len(weights)} matryoshka weights for {len(dims)} dims; give one each"
        )


def weighted_sum(
    losses: Float32[Array, " dims"], weights: Sequence[float]
) -> Float32[Array, ""]:
    """Add up the losses of all dimensions, each times its weight."""
    return jnp.sum(losses * jnp.asarray(weights, jnp.float32))


def matryoshka_loss(
    loss: Callable[[Array, Array], Float32[Array, ""]],
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, " dims"]]:
    """Give a loss of queries and documents the prefixes of both.

    Args:
        loss: scales what it is given to unit length itself.
        query: at full width.
        document: at full width.
        dims: lengths of the prefixes.
        weights: of the dims' losses; None: 1 each.

    Returns:
        The weighted sum, and the losses it is made of.

    Raises:
        ValueError: a dim is not within the width, or weights are missing.
    """
    weights = [1.0] * len(dims) if weights is None else weights
    check_dims(dims, weights, query.shape[1])
    losses = jnp.stack([loss(query[:, :dim], document[:, :dim]) for dim in dims])
    return weighted_sum(losses, weights), losses
