"""A dense layer from the pooled vector to the embedding, as some published models have.

    embedding = tanh(pooled @ kernel + bias)        or without the tanh

It is the module `Dense` of Sentence-BERT's library (Reimers and Gurevych 2019,
arXiv:1908.10084, and its code).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

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
