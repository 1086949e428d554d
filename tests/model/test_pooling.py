import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.batch import PackedTexts, Tokens
from nomic_jax.config import PUBLISHED_EMBEDDINGS, EmbeddingConfig
from nomic_jax.model.pooling import (
    cls_pool,
    embed,
    embed_packed,
    last_pool,
    matryoshka,
    mean_pool,
    normalize,
)

V1 = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1"]
V15 = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"]


@pytest.fixture
def hidden():
    return jax.random.normal(jax.random.key(0), (3, 6, 32)) * 2 + 1


MASK = jnp.arange(6)[None] < jnp.array([[6], [2], [0]])  # the last row is empty


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def layer_normed(x):
    variance = x.var(axis=-1, keepdims=True)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5)


def test_mean_pooling_counts_tokens_only(hidden):
    got = np.asarray(mean_pool(hidden, MASK))
    np.testing.assert_allclose(got[0], hidden[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(got[1], hidden[1, :2].mean(0), atol=1e-6)
    np.testing.assert_array_equal(got[2], 0)


def test_cls_pooling_takes_the_first_column(hidden):
    np.testing.assert_array_equal(cls_pool(hidden, MASK), hidden[:, 0])


def test_last_pooling_takes_the_last_token(hidden):
    got = last_pool(hidden, MASK)
    np.testing.assert_array_equal(got[0], hidden[0, 5])
    np.testing.assert_array_equal(got[1], hidden[1, 1])
    assert np.isfinite(got).all()


@pytest.mark.parametrize("dim", [32, 8])
def test_v1_slices_and_normalises(hidden, dim):
    got = matryoshka(embed(hidden, MASK, V1), dim)
    expected = unit(np.asarray(hidden[0], np.float64).mean(0)[:dim])
    np.testing.assert_allclose(got[0], expected, atol=1e-6)


@pytest.mark.parametrize("dim", [32, 8])
def test_v15_norms_the_full_width_then_slices_and_normalises(hidden, dim):
    got = matryoshka(embed(hidden, MASK, V15), dim)
    pooled = np.asarray(hidden[0], np.float64).mean(0)
    np.testing.assert_allclose(got[0], unit(layer_normed(pooled)[:dim]), atol=1e-6)
    # v1's convention is something else.
    assert np.abs(got[0] - unit(pooled[:dim])).max() > 1e-2


def test_v15_does_not_norm_the_slice(hidden):
    got = matryoshka(embed(hidden, MASK, V15), 8)
    pooled = np.asarray(hidden[0], np.float64).mean(0)
    assert np.abs(got[0] - unit(layer_normed(pooled[:8]))).max() > 1e-2


@pytest.mark.parametrize("convention", [V1, V15])
def test_a_prefix_is_the_full_embedding_cut_and_normalised(hidden, convention):
    vector = embed(hidden, MASK, convention)
    full = matryoshka(vector, 32)
    cut = unit(np.asarray(full)[:2, :8])
    np.testing.assert_allclose(matryoshka(vector, 8)[:2], cut, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_empty_row_has_finite_embedding_and_gradient(hidden, pooling, layer_norm):
    config = EmbeddingConfig(pooling=pooling, layer_norm=layer_norm, max_length=6)

    def total(hidden):
        return jnp.sum(jnp.sin(matryoshka(embed(hidden, MASK, config), 8)))

    value, gradient = jax.value_and_grad(total)(hidden)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_embeddings_are_float32_of_unit_length(hidden):
    got = matryoshka(embed(jnp.asarray(hidden, jnp.bfloat16), MASK, V15), 16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(got[:2], axis=1), 1, atol=1e-6)


def test_a_zero_vector_stays_zero():
    np.testing.assert_array_equal(normalize(jnp.zeros((2, 4))), np.zeros((2, 4)))


SEGMENTS = np.array([[1, 1, 2, 3, 3, 3], [1, 1, 1, 1, 0, 0], [0] * 6], np.int32)
LENGTHS = np.array([[2, 1, 3], [4, 0, 0], [0, 0, 0]], np.int32)
SLOTS = np.array([3, 2, 0, 1], np.int32)  # of four texts, in no order of place
RUNS = {0: (0, 0, 2), 1: (0, 2, 3), 2: (0, 3, 6), 3: (1, 0, 4)}  # row, start, stop


@pytest.fixture
def packed():
    return PackedTexts(Tokens(np.ones_like(SEGMENTS), SEGMENTS), LENGTHS)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_packed_texts_are_pooled_each_from_its_own_tokens(
    hidden, packed, pooling, layer_norm
):
    config = EmbeddingConfig(pooling=pooling, layer_norm=layer_norm, max_length=6)
    got = embed_packed(hidden, packed, config)
    assert got.shape == (*LENGTHS.shape, 32) and got.dtype == jnp.float32
    assert np.isfinite(got).all()
    for slot in SLOTS.tolist():
        vector = got.reshape(-1, 32)[slot]
        row, start, stop = RUNS[slot]
        own = np.asarray(hidden, np.float64)[row, start:stop]
        expected = {"mean": own.mean(0), "cls": own[0], "last": own[-1]}[pooling]
        if layer_norm:
            expected = layer_normed(expected)
        # float32 sums of up to 6 terms near 1, and a norm over 32.
        np.testing.assert_allclose(vector, expected, atol=2e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("convention", [V1, V15])
def test_one_text_a_row_is_a_packed_row_of_one_slot(hidden, convention):
    segments = MASK[:2].astype(np.int32)
    lengths = np.array([[6], [2]], np.int32)
    texts = PackedTexts(Tokens(np.ones_like(segments), np.asarray(segments)), lengths)
    got = embed_packed(hidden[:2], texts, convention)[:, 0]
    np.testing.assert_array_equal(got, embed(hidden[:2], MASK[:2], convention))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_text_sends_its_gradient_to_its_own_tokens_only(hidden, packed, pooling):
    config = EmbeddingConfig(pooling=pooling, layer_norm=True, max_length=6)
    for slot in SLOTS.tolist():

        def one(hidden, slot=slot):
            vectors = embed_packed(hidden, packed, config).reshape(-1, 32)
            return jnp.sum(jnp.sin(vectors[slot]))

        gradient = np.asarray(jax.grad(one)(hidden))
        assert np.isfinite(gradient).all()
        row, start, stop = RUNS[slot]
        if pooling != "mean":
            start = start if pooling == "cls" else stop - 1
            stop = start + 1
        reached = np.zeros((3, 6), bool)
        reached[row, start:stop] = True
        np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, reached)
