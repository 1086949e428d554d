"""The feed-forward layer: gated as in NomicBERT, plain as in BERT.

    swiglu: down(up(x) * silu(gate(x)))        gelu: down(gelu(up(x)))

SwiGLU is of Shazeer 2020 (arXiv:2002.05202), section 2; GELU is the exact one, by the
error function (Hendrycks and Gimpel 2016, arXiv:1606.08415). In the published tensors
`fc11` is `up` and `fc12`, the branch that gets the SiLU, is `gate`; `fc2` is `down`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nomic_jax.config import ModelConfig
from nomic_jax.model.linear import Linear


class Mlp(nnx.Module):
    """Two matmuls and an activation between them, or three where it is gated."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights from N(0, initializer_range)."""
        width, inner = (config.width,), (config.mlp_width,)
        linear = functools.partial(
            Linear,
            deviation=config.initializer_range,
            bias=config.bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.up = linear(width, inner)
        self.gate = linear(width, inner) if config.activation == "swiglu" else None
        self.down = linear(inner, width)

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Apply the layer to each token."""
        if self.gate is None:
            return self.down(jax.nn.gelu(self.up(x), approximate=False))
        return self.down(self.up(x) * jax.nn.silu(self.gate(x)))
