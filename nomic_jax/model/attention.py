"""Bidirectional attention within each text: `attend`, and the layer around it.

Vaswani et al. 2017 (arXiv:1706.03762), section 3.2, with rotary positions. The layer
holds queries, keys and values in one matrix, as the published checkpoints do.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nomic_jax.config import ModelConfig
from nomic_jax.model.linear import Linear, project, with_bias
from nomic_jax.model.rope import Turns, rotate

# Longer rows are cut into blocks of queries: the scores of one head and block, 512 x
# 8192 in float32, are 16 MB, where those of a whole row and twelve heads are 3 GB.
QUERY_BLOCK = 512


def attend(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
) -> Float[Array, "B S H K"]:
    """Let every token look at the tokens of its own segment; softmax in float32.

    Padding is a segment of its own: its rows are finite and mean nothing.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # B H S K
    if q.shape[2] < QUERY_BLOCK:
        out = _over_rows_and_heads(jax.vmap, _attend_whole)(q, k, v, segment_ids)
    else:
        # A processor works from its cache, so one head at a time: 2.7 times as fast as
        # all at once at 8,192 tokens. An accelerator has its lanes to fill.
        out = jax.lax.platform_dependent(
            q,
            k,
            v,
            segment_ids,
            cpu=_over_rows_and_heads(_one_by_one, _attend_blocks),
            default=_over_rows_and_heads(jax.vmap, _attend_blocks),
        )
    return jnp.swapaxes(out, 1, 2)


def _over_rows_and_heads(lift, function):
    """Lift a function of one head to B H S K; all heads of a row share its segments."""
    return lift(
        lambda q, k, v, segment_ids: lift(lambda *head: function(*head, segment_ids))(
            q, k, v
        )
    )


def _one_by_one(function):
    """Map a function over leading axes as `jax.vmap` does, in sequence."""
    return lambda *arrays: jax.lax.map(lambda each: function(*each), arrays)


def _attend_whole(q, k, v, segment_ids):
    return _attend_head(q, segment_ids, k, v, segment_ids)


def _attend_blocks(q, k, v, segment_ids):
    length, width = q.shape
    blocks = -(-length // QUERY_BLOCK)
    extra = blocks * QUERY_BLOCK - length
    queries = jnp.pad(q, ((0, extra), (0, 0))).reshape(blocks, QUERY_BLOCK, width)
    query_segments = jnp.pad(segment_ids, (0, extra)).reshape(blocks, QUERY_BLOCK)

    @jax.checkpoint  # the scores of a block are cheaper to redo than to keep
    def one_block(block):
        block_queries, block_segments = block
        return _attend_head(block_queries, block_segments, k, v, segment_ids)

    out = jax.lax.map(one_block, (queries, query_segments))  # blocks Q K
    return out.reshape(-1, width)[:length]


def _attend_head(q, query_segments, k, v, key_segments):
    """Attend from Q queries to S keys of one head."""
    scores = jnp.einsum("qk,sk->qs", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    same = query_segments[:, None] == key_segments[None]
    # A finite floor, so that a block's extra query rows stay free of NaN.
    scores = jnp.where(same, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights from N(0, initializer_range)."""
        width, heads = (config.width,), (config.num_heads, config.head_width)
        linear = functools.partial(
            Linear,
            deviation=config.initializer_range,
            bias=config.bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.qkv = linear(width, (3, *heads))
        self.out = linear(heads, width)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        segment_ids: Int[Array, "B S"],
        turns: Turns | None,
    ) -> Float[Array, "B S D"]:
        """Mix the tokens of each segment; `turns` are those of rotary positions."""
        x = x.astype(self.qkv.dtype)
        # One product each: split from a common one they would have to be copied out.
        q, k, v = (project(x, self.qkv.kernel[:, i]) for i in range(3))  # B S H K
        if self.qkv.bias is not None:
            biases = self.qkv.bias[...]
            q, k, v = (with_bias(y, biases[i]) for i, y in enumerate((q, k, v)))
        if turns is not None:
            q, k = rotate(q, *turns), rotate(k, *turns)
        return self.out(attend(q, k, v, segment_ids))
