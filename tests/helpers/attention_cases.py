"""Queries, keys and values of packed rows, and attention by its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def random_heads(length, *, rows=2, heads=2, width=8, seed=0, dtype=jnp.float32):
    """Draw rows of two texts and padding, cut at random."""
    random = np.random.default_rng(seed)
    q, k, v = random.normal(size=(3, rows, length, heads, width))
    segments = np.zeros((rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(random.choice(np.arange(1, length), 2, replace=False))
        segments[row, : cuts[0]] = 1
        segments[row, cuts[0] : cuts[1]] = 2
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), jnp.asarray(segments)


@functools.partial(jax.jit, static_argnums=3)
def exact_weights(q, k, segments, window=None):
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    if window is not None:
        columns = np.arange(q.shape[1])
        seen &= np.abs(columns[:, None] - columns[None])[None, None] <= window
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)


@functools.partial(jax.jit, static_argnums=4)
def exact_attention(q, k, v, segments, window=None):
    """Attention by its definition, all scores at once, in the precision of q."""
    weights = exact_weights(q, k, segments, window)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v)


def values_and_gradients(function, q, k, v, direction):
    """Return a function's values, and the gradients of their sum along a direction."""

    @jax.jit
    def both(q, k, v):
        out, pull = jax.vjp(function, q, k, v)
        return out, *pull(direction.astype(out.dtype))

    return [np.asarray(x, np.float32) for x in both(q, k, v)]
