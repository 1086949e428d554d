"""Attention in plain JAX, for any platform: whole rows, or blocks of queries.

    out = softmax(q k^T / sqrt(K), where segments are equal and columns near) v

Blocks bound what is held at a time (Rabe and Staats 2021, arXiv:2112.05682); the
backward pass computes their scores again.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from nomic_jax.model.attention.backends import AttentionSpec

# Longer rows are cut into blocks of queries: the scores of one head and block, 512 x
# 8192 in float32, are 16 MB, where those of a whole row and twelve heads are 3 GB.
QUERY_BLOCK = 512
OUTSIDE = -1  # the segment of what is before and after a row


def unsupported(spec: AttentionSpec) -> None:
    """Return None: there is nothing that it cannot compute."""


def auto_skips(spec: AttentionSpec) -> bool:
    """Return False: it is the last that `auto` comes to."""
    return False


def attend(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    window: int | None = None,
    *,
    texts: int | None = None,
) -> Float[Array, "B S H K"]:
    """Attend as `layer.attend` says, whatever the number of texts; softmax in float32.

    In long rows a window makes the work grow with the tokens instead of their square.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # B H S K
    whole = functools.partial(_attend_whole, window=window)
    blocks = functools.partial(_attend_blocks, window=window)
    if q.shape[2] < QUERY_BLOCK:
        out = _over_rows_and_heads(jax.vmap, whole)(q, k, v, segment_ids)
    else:
        # A processor works from its cache, so one head at a time: 2.7 times as fast as
        # all at once at 8,192 tokens. An accelerator has its lanes to fill.
        out = jax.lax.platform_dependent(
            q,
            k,
            v,
            segment_ids,
            cpu=_over_rows_and_heads(_one_by_one, blocks),
            default=_over_rows_and_heads(jax.vmap, blocks),
        )
    return jnp.swapaxes(out, 1, 2)


def attention_weights(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    window: int | None = None,
) -> Float32[Array, "B H S S"]:
    """Return how much each token (first S) looks at each other (last S).

    Arguments are those of `attend`, which never holds this array.
    """
    q, k = (jnp.swapaxes(x, 1, 2) for x in (q, k))
    columns = jnp.arange(q.shape[2])

    def one_head(q, k, segments):
        return _weights(q, (segments, columns), k, (segments, columns), window)

    return _over_rows_and_heads(jax.vmap, one_head)(q, k, segment_ids)


def _over_rows_and_heads(lift, function):
    """Lift a function of one head to B H S K; all heads of a row share its segments."""

    def one_row(*arrays):
        *heads, segment_ids = arrays
        return lift(lambda *head: function(*head, segment_ids))(*heads)

    return lift(one_row)


def _one_by_one(function):
    """Map a function over leading axes as `jax.vmap` does, in sequence."""
    return lambda *arrays: jax.lax.map(lambda each: function(*each), arrays)


def _attend_whole(q, k, v, segment_ids, *, window):
    places = segment_ids, jnp.arange(len(q))
    return _attend_head(q, places, k, v, places, window)


def _attend_blocks(q, k, v, segment_ids, *, window):
    length, width = q.shape
    blocks = -(-length // QUERY_BLOCK)
    extra = blocks * QUERY_BLOCK - length
    columns = jnp.arange(blocks * QUERY_BLOCK).reshape(blocks, QUERY_BLOCK)
    queries = jnp.pad(q, ((0, extra), (0, 0))).reshape(blocks, QUERY_BLOCK, width)
    query_segments = jnp.pad(segment_ids, (0, extra)).reshape(blocks, QUERY_BLOCK)
    if window is None:
        keys = k, v, segment_ids, jnp.arange(length)
    else:  # room on both sides, for the first block's window and the last's
        sides = (window, extra + window)
        keys = (
            *(jnp.pad(x, (sides, (0, 0))) for x in (k, v)),
            jnp.pad(segment_ids, sides, constant_values=OUTSIDE),
            jnp.arange(-window, length + extra + window),
        )

    @jax.checkpoint  # the scores of a block are cheaper to redo than to keep
    def one_block(block):
        block_queries, block_segments, block_columns = block
        seen = keys
        if window is not None:
            start, size = block_columns[0], QUERY_BLOCK + 2 * window
            seen = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in keys)
        block_keys, values, segments, key_columns = seen
        return _attend_head(
            block_queries,
            (block_segments, block_columns),
            block_keys,
            values,
            (segments, key_columns),
            window,
        )

    out = jax.lax.map(one_block, (queries, query_segments, columns))  # blocks Q K
    return out.reshape(-1, width)[:length]


def _attend_head(q, query_places, k, v, key_places, window):
    """Attend from queries to keys of one head; places are segments and columns."""
    weights = _weights(q, query_places, k, key_places, window)
    return weights.astype(v.dtype) @ v


def _weights(q, query_places, k, key_places, window):
    scores = jnp.einsum("qk,sk->qs", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    (query_segments, query_columns), (key_segments, key_columns) = (
        query_places,
        key_places,
    )
    seen = query_segments[:, None] == key_segments[None]
    if window is not None:
        seen &= jnp.abs(query_columns[:, None] - key_columns[None]) <= window
    # A finite floor, so that a block's extra query rows stay free of NaN.
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)
