"""Bidirectional attention within each text: `attend`, and the layer around it.

Vaswani et al. 2017 (arXiv:1706.03762), section 3.2, with rotary positions; a window
keeps each token to its neighbours (Beltagy et al. 2020, arXiv:2004.05150, section 3.1).
The layer holds queries, keys and values in one matrix, as published checkpoints do.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from nomic_jax.config import ModelConfig
from nomic_jax.model.attention.backends import (
    AttentionSpec,
    Setting,
    choose,
    kernel_of,
)
from nomic_jax.model.attention.blockwise import attention_weights
from nomic_jax.model.layers import Linear, output_deviation, project, with_bias
from nomic_jax.model.rope import RotaryTable, rotate

ANY_TEXTS = Setting()


def attend(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    window: int | None = None,
    *,
    setting: Setting = ANY_TEXTS,
) -> Float[Array, "B S H K"]:
    """Attention of every token to the tokens of its own segment.

    Padding is a segment of its own: its rows are finite and mean nothing.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: of the tokens; a text is a run of equal ones.
        window: columns to either side that a token attends to; None: all.
        setting: the backend, and what it must know; see `backends`.

    Raises:
        ValueError: the backend cannot do it, with the reason.
    """
    spec = AttentionSpec.of(
        setting,
        str(q.dtype),
        head_width=q.shape[3],
        length=q.shape[1],
        window=window,
    )
    kernel = kernel_of(choose(setting.backend, spec))
    return kernel.attend(q, k, v, segment_ids, window, texts=setting.texts)


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        local: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Draw fresh weights.

        They are from N(0, initializer_range); in a pre-norm model, whose residual
        stream adds up all that its layers write, those of the output are smaller by
        the root of the number of branches.

        Args:
            config: the model's.
            local: tokens look no further than `config.local_window`.
            dtype: what products run in.
            rngs: source of randomness.
        """
        width, heads = (config.width,), (config.num_heads, config.head_width)
        linear = functools.partial(Linear, bias=config.bias, dtype=dtype, rngs=rngs)
        self.qkv = linear(width, (3, *heads), deviation=config.initializer_range)
        self.out = linear(heads, width, deviation=output_deviation(config))
        self.window = config.local_window if local else None

    def __call__(
        self,
        x: Float[Array, "B S D"],
        segment_ids: Int[Array, "B S"],
        rotary: RotaryTable | None,
        *,
        setting: Setting = ANY_TEXTS,
        weights: bool = False,
    ) -> tuple[Float[Array, "B S D"], Float32[Array, "B H S S"] | None]:
        """Mix the tokens of each segment.

        Args:
            x: tokens.
            segment_ids: of the tokens.
            rotary: of rotary positions.
            setting: of `attend`.
            weights: return how much each token looks at each other, else None.
        """
        x = x.astype(self.qkv.dtype)
        # One product each: split from a common one they would have to be copied out.
        q, k, v = (project(x, self.qkv.kernel[:, i]) for i in range(3))  # B S H K
        if self.qkv.bias is not None:
            biases = self.qkv.bias[...]
            q, k, v = (with_bias(y, biases[i]) for i, y in enumerate((q, k, v)))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        looks = attention_weights(q, k, segment_ids, self.window) if weights else None
        mixed = attend(q, k, v, segment_ids, self.window, setting=setting)
        return self.out(mixed), looks
