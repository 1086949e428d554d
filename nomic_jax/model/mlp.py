"""The gated feed-forward layer: `down(up(x) * silu(gate(x)))`.

SwiGLU of Shazeer 2020 (arXiv:2002.05202), section 2. In the published tensors `fc11` is
`up` and `fc12`, the branch that gets the SiLU, is `gate`; `fc2` is `down`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nomic_jax.config import ModelConfig
from nomic_jax.model.linear import Linear


class SwiGlu(nnx.Module):
    """A SwiGLU layer without biases."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights from N(0, initializer_range)."""
        width, inner = (config.width,), (config.mlp_width,)
        deviation = config.initializer_range
        self.up = Linear(width, inner, deviation=deviation, dtype=dtype, rngs=rngs)
        self.gate = Linear(width, inner, deviation=deviation, dtype=dtype, rngs=rngs)
        self.down = Linear(inner, width, deviation=deviation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Apply the layer to each token."""
        return self.down(self.up(x) * jax.nn.silu(self.gate(x)))
