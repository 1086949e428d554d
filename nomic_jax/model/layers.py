"""A linear layer over tokens, and the feed-forward layer: gated or plain.

    swiglu: down(up(x) * silu(gate(x)))        gelu: down(gelu(up(x)))
    geglu:  down(up(x) * gelu(gate(x)))

SwiGLU and GeGLU: Shazeer 2020 (arXiv:2002.05202), section 2. GELU is exact, by the
error function (Hendrycks and Gimpel 2016, arXiv:1606.08415). In NomicBERT's published
tensors `fc11` is `up` and `fc12`, the branch that gets the SiLU, is `gate`; `fc2` is
`down`. In ModernBERT's, `Wi` holds `gate` above `up`, and `Wo` is `down`.

Linear layers are one two-dimensional matmul: XLA on CPU takes twice as long over a
weight's gradient when it contracts rows and columns as two axes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from nomic_jax.config import ModelConfig

# Names what tokens and weights make. Scores of attention have no part in it: they grow
# with the square of a row's length, and are cheap to redo.
PRODUCT = "product"


class Linear(nnx.Module):
    """A kernel of shape `inputs + outputs`, from N(0, deviation), and maybe a bias."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        deviation: float,
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Draw a fresh kernel; `dtype` is what the product runs in. A bias is zero."""
        draw = nnx.initializers.normal(deviation)
        self.kernel = nnx.Param(draw(rngs.params(), inputs + outputs))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.num_inputs = len(inputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Contract the last axes of `x`, the inputs, with the kernel's first."""
        x = project(x.astype(self.dtype), self.kernel[...], self.num_inputs)
        return x if self.bias is None else with_bias(x, self.bias[...])


def project(
    x: Float[Array, "..."], kernel: Float[Array, "..."], num_inputs: int = 1
) -> Float[Array, "..."]:
    """Contract the last axes of `x`, `num_inputs` of them, with the kernel's first.

    The result has a name, by which rematerialisation may keep it.
    """
    width = math.prod(kernel.shape[:num_inputs])
    matrix = kernel.astype(x.dtype).reshape(width, -1)
    tokens, outputs = x.shape[: x.ndim - num_inputs], kernel.shape[num_inputs:]
    product = checkpoint_name(x.reshape(-1, width) @ matrix, PRODUCT)
    return product.reshape(*tokens, *outputs)


def with_bias(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Add a bias to the last axes of every token, in the type of the product."""
    return x + jnp.broadcast_to(bias.astype(x.dtype), x.shape)


def output_deviation(config: ModelConfig) -> float:
    """Return the deviation of fresh weights that write into the residual stream."""
    branches = 2 * config.num_layers if config.pre_norm else 1
    return config.initializer_range / math.sqrt(branches)


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
