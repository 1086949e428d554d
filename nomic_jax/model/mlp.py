"""The feed-forward layer: gated as in NomicBERT and ModernBERT, plain as in BERT.

    swiglu: down(up(x) * silu(gate(x)))        gelu: down(gelu(up(x)))
    geglu:  down(up(x) * gelu(gate(x)))

SwiGLU and GeGLU are of Shazeer 2020 (arXiv:2002.05202), section 2; GELU is the exact
one, by the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415). In NomicBERT's
published tensors `fc11` is `up` and `fc12`, the branch that gets the SiLU, is `gate`;
`fc2` is `down`. In ModernBERT's, `Wi` holds `gate` above `up`, and `Wo` is `down`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nomic_jax.config import ModelConfig
from nomic_jax.model.linear import Linear, output_deviation


class Mlp(nnx.Module):
    """Two matmuls and an activation between them, or three where it is gated."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights; see `Attention` for their deviations."""
        width, inner = (config.width,), (config.mlp_width,)
        linear = functools.partial(Linear, bias=config.bias, dtype=dtype, rngs=rngs)
        into = functools.partial(linear, width, inner)
        gated = config.activation != "gelu"
        self.up = into(deviation=config.initializer_range)
        self.gate = into(deviation=config.initializer_range) if gated else None
        self.down = linear(inner, width, deviation=output_deviation(config))
        self.activation = config.activation

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Apply the layer to each token."""
        if self.gate is None:
            return self.down(gelu(self.up(x)))
        activate = jax.nn.silu if self.activation == "swiglu" else gelu
        return self.down(self.up(x) * activate(self.gate(x)))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Apply the exact GELU, by the error function."""
    return jax.nn.gelu(x, approximate=False)
