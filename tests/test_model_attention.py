import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.model import attention
from nomic_jax.model.attention import QUERY_BLOCK, attend


def random_heads(length, *, rows=2, heads=2, width=8, seed=0):
    random = np.random.default_rng(seed)
    q, k, v = random.normal(size=(3, rows, length, heads, width)).astype(np.float32)
    segments = np.zeros((rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(random.choice(np.arange(1, length), 2, replace=False))
        segments[row, : cuts[0]] = 1
        segments[row, cuts[0] : cuts[1]] = 2
    return tuple(map(jnp.asarray, (q, k, v, segments)))


def exact_attention(q, k, v, segments):
    """Attention by its definition, all scores at once, in the precision of q."""
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
    same = segments[:, None, :, None] == segments[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(same, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v)


# Below, at and beyond one block of queries, and lengths that blocks do not divide.
@pytest.mark.parametrize("length", [5, 511, 512, 513, 1100])
def test_attention_equals_its_definition_and_so_do_gradients(length):
    q, k, v, segments = random_heads(length)
    direction = jax.random.normal(jax.random.key(1), q.shape)
    # Softmax sums of up to 1,100 terms in float32.
    exact = exact_attention(q, k, v, segments)
    held = np.asarray(segments) > 0
    got = np.asarray(attend(q, k, v, segments))
    np.testing.assert_allclose(got[held], np.asarray(exact)[held], atol=5e-6)
    assert np.isfinite(got).all()

    def gradient(function):
        return jax.grad(
            lambda q, k, v: jnp.sum(function(q, k, v, segments) * direction),
            argnums=(0, 1, 2),
        )(q, k, v)

    for got, expected in zip(gradient(attend), gradient(exact_attention), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("length", [512, 700])
def test_the_accelerators_form_equals_the_processors(length):
    q, k, v, segments = random_heads(length)
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    at_once = attention._over_rows_and_heads(jax.vmap, attention._attend_blocks)
    got = jnp.swapaxes(at_once(*heads_first, segments), 1, 2)
    np.testing.assert_allclose(got, attend(q, k, v, segments), atol=5e-6)


@pytest.mark.parametrize("length", [40, QUERY_BLOCK + 40])
def test_no_token_sees_another_segment(length):
    q, k, v, segments = random_heads(length, rows=1)
    seen = jax.jacobian(lambda v: jnp.sum(attend(q, k, v, segments)[0, 3]))(v)
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
