"""From hidden states to the embedding: pool, cut to a dimension, normalise.

Matryoshka embeddings (Kusupati et al. 2022, arXiv:2205.13147) are prefixes. v1 and v2
slice the pooled vector and normalise; v1.5 first applies a layer norm without
parameters over the full width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from nomic_jax.config import EmbeddingConfig

LAYER_NORM_EPSILON = 1e-5  # of v1.5's parameter-free norm: PyTorch's default
NORM_FLOOR = 1e-12  # the least length a vector is divided by


def mean_pool(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float32[Array, "B D"]:
    """Average the hidden states of each row's tokens, special ones and prefix included.

    A row without tokens gives zeros.
    """
    weights = mask.astype(jnp.float32)
    # Accelerators would round float32 factors to bfloat16.
    total = jnp.einsum(
        "bsd,bs->bd",
        hidden.astype(jnp.float32),
        weights,
        precision=jax.lax.Precision.HIGHEST,
    )
    return total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)


def cls_pool(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float32[Array, "B D"]:
    """Take the hidden state of each row's first column; the mask is not needed."""
    del mask
    return hidden[:, 0].astype(jnp.float32)


def normalize(x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """Scale each vector to unit length; a zero vector stays zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The floor goes under the root: the gradient of sqrt at 0 is not finite.
    return x / jnp.sqrt(jnp.maximum(square, NORM_FLOOR**2))


def plain_layer_norm(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Layer norm without parameters, over the full width."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + LAYER_NORM_EPSILON)


def embed(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B S"], config: EmbeddingConfig
) -> Float32[Array, "B D"]:
    """Pool hidden states into one full-width vector a row, not cut or normalised."""
    pooled = {"mean": mean_pool, "cls": cls_pool}[config.pooling](hidden, mask)
    return plain_layer_norm(pooled) if config.layer_norm else pooled


def matryoshka(x: Float[Array, "*rows D"], dim: int) -> Float[Array, "*rows E"]:
    """Cut full-width vectors to their first `dim` entries and scale to unit length."""
    return normalize(x[..., :dim])
