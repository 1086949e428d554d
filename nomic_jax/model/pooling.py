"""From hidden states to the embedding: pool, project, cut to a dimension, normalise.

Matryoshka embeddings (Kusupati et al. 2022, arXiv:2205.13147) are prefixes. v1 and v2
slice the pooled vector and normalise; v1.5 first applies a layer norm without
parameters over the full width. Some published models have a dense layer after pooling,
Sentence-BERT's module `Dense` (Reimers and Gurevych 2019, arXiv:1908.10084):

    embedding = tanh(pooled @ kernel + bias)        or without the tanh
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from nomic_jax.batch import PackedTexts
from nomic_jax.config import EmbeddingConfig

LAYER_NORM_EPSILON = 1e-5  # of v1.5's parameter-free norm: PyTorch's default
NORM_FLOOR = 1e-12  # the least length a vector is divided by


def mean_pool(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B *slots S"]
) -> Float32[Array, "B *slots D"]:
    """Average the hidden states of each text, its special tokens and prefix included.

    A text without tokens gives zeros.

    Args:
        hidden: of every column.
        mask: which columns of its row a text has: one mask a row, or one a slot.
    """
    weights = mask.astype(jnp.float32)
    # Accelerators would round float32 factors to bfloat16.
    total = jnp.einsum(
        "b...s,bsd->b...d",
        weights,
        hidden.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return total / jnp.maximum(weights.sum(axis=-1)[..., None], 1)


def cls_pool(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B *slots S"]
) -> Float32[Array, "B *slots D"]:
    """Take the hidden state of each text's first column; see `mean_pool`."""
    first = jnp.argmax(mask, axis=-1)
    return jax.vmap(lambda row, column: row[column])(hidden, first).astype(jnp.float32)


def last_pool(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B *slots S"]
) -> Float32[Array, "B *slots D"]:
    """Take the hidden state of each text's last column; see `mean_pool`."""
    last = mask.shape[-1] - 1 - jnp.argmax(jnp.flip(mask, axis=-1), axis=-1)
    return jax.vmap(lambda row, column: row[column])(hidden, last).astype(jnp.float32)


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
    hidden: Float[Array, "B S D"],
    mask: Bool[Array, "B *slots S"],
    config: EmbeddingConfig,
) -> Float32[Array, "B *slots D"]:
    """Pool hidden states into one full-width vector a text, not cut or normalised."""
    pool = {"mean": mean_pool, "cls": cls_pool, "last": last_pool}[config.pooling]
    pooled = pool(hidden, mask)
    return plain_layer_norm(pooled) if config.layer_norm else pooled


def embed_packed(
    hidden: Float[Array, "B S D"], texts: PackedTexts, config: EmbeddingConfig
) -> Float32[Array, "B T D"]:
    """Pool the text in each slot of packed rows from its own tokens.

    An empty slot gives a finite vector that means nothing.
    """
    segments = 1 + jnp.arange(texts.slot_lengths.shape[1])
    mask = jnp.asarray(texts.tokens.segment_ids)[:, None] == segments[None, :, None]
    return embed(hidden, mask, config)


def matryoshka(x: Float[Array, "*rows D"], dim: int) -> Float[Array, "*rows E"]:
    """Cut full-width vectors to their first `dim` entries and scale to unit length."""
    return normalize(x[..., :dim])


ProjectionActivation = Literal["identity", "tanh"]


class Projection(nnx.Module):
    """A matrix, maybe a bias, and an activation; float32."""

    def __init__(
        self,
        kernel: Float[Array | np.ndarray, "D E"],
        bias: Float[Array | np.ndarray, "E"] | None,
        *,
        activation: ProjectionActivation,
    ):
        """Take the weights as they are."""
        self.kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))
        self.bias = None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))
        self.activation = activation

    @property
    def width(self) -> int:
        """The dimensions of what it gives."""
        return self.kernel.shape[1]

    def __call__(self, pooled: Float32[Array, "*rows D"]) -> Float32[Array, "*rows E"]:
        """Project each vector."""
        exact = jax.lax.Precision.HIGHEST  # accelerators would round to bfloat16
        out = jnp.matmul(pooled, self.kernel[...], precision=exact)
        if self.bias is not None:
            out += jnp.broadcast_to(self.bias[...], out.shape)
        return jnp.tanh(out) if self.activation == "tanh" else out
