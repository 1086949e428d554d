import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    exact_attention,
    exact_weights,
    random_heads,
    values_and_gradients,
)
from jax.extend.core import jaxprs_in_params

from nomic_jax.model.attention import blockwise
from nomic_jax.model.attention.blockwise import QUERY_BLOCK, attention_weights

attend = jax.jit(blockwise.attend, static_argnums=4)


# Below, at and beyond one block of queries, and lengths that blocks do not divide.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "window"),
    [(n, None) for n in (5, 511, 512, 513, 1100)]
    + [(5, 1), (5, 9), (200, 7), (512, 64), (1100, 64), (1100, 600)],
)
def test_attention_equals_its_definition_and_so_do_gradients(length, window):
    q, k, v, segments = random_heads(length)
    direction = jax.random.normal(jax.random.key(1), q.shape)

    def both(function):
        return values_and_gradients(
            lambda q, k, v: function(q, k, v, segments, window), q, k, v, direction
        )

    got, *gradients = both(attend)
    exact, *expected = both(exact_attention)
    # Softmax sums of up to 1,100 terms in float32.
    held = np.asarray(segments) > 0
    np.testing.assert_allclose(got[held], exact[held], atol=5e-6)
    assert np.isfinite(got).all()
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(("length", "window"), [(512, None), (700, None), (700, 64)])
def test_the_accelerators_form_equals_the_processors(length, window):
    q, k, v, segments = random_heads(length)
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    blocks = functools.partial(blockwise._attend_blocks, window=window)
    at_once = jax.jit(blockwise._over_rows_and_heads(jax.vmap, blocks))
    got = jnp.swapaxes(at_once(*heads_first, segments), 1, 2)
    np.testing.assert_allclose(got, attend(q, k, v, segments, window), atol=5e-6)


def test_a_window_keeps_each_block_of_queries_to_the_keys_around_it():
    def largest(length):
        """The largest array that is made anywhere in the computation."""
        heads = random_heads(length, rows=1, heads=1)
        made = jax.make_jaxpr(lambda *arrays: attend(*arrays, 64))(*heads)
        return max(_sizes(made.jaxpr))

    # 512 queries meet 640 keys, whatever the length.
    assert largest(2048) == largest(4096) == QUERY_BLOCK * (QUERY_BLOCK + 128)


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _sizes(inner)


@pytest.mark.parametrize("window", [None, 3])
def test_weights_on_request_are_those_attention_uses(window):
    q, k, v, segments = random_heads(50)
    weights = attention_weights(q, k, segments, window)
    expected = exact_weights(q, k, segments, window)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    mixed = jnp.einsum("bhqs,bshk->bqhk", weights, v)
    np.testing.assert_allclose(attend(q, k, v, segments, window), mixed, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("length", [40, QUERY_BLOCK + 40])
def test_no_token_sees_another_segment(length):
    q, k, v, segments = random_heads(length, rows=1)
    seen = jax.jit(jax.jacobian(lambda v: jnp.sum(attend(q, k, v, segments)[0, 3])))(v)
    np.testing.assert_array_equal(
        np.abs(np.asarray(seen)[0]).sum((1, 2)) > 0, segments[0] == segments[0, 3]
    )


def test_softmax_is_float32_under_bfloat16():
    q, k, v, segments = random_heads(200)
    halves = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    got = attend(*halves, segments)
    assert got.dtype == jnp.bfloat16
    error = np.asarray(got, np.float32) - exact_attention(q, k, v, segments)
    # Inputs, weights and output are rounded to 8 bits, nothing else is.
    assert np.sqrt(np.mean(error**2)) < 0.01
