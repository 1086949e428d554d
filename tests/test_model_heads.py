import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_names import published

from nomic_jax.model.heads import MaskedLanguageModel


@pytest.fixture
def model(tiny_config):
    config = dataclasses.replace(tiny_config, head="mlm")
    return MaskedLanguageModel(config, rngs=nnx.Rngs(0))


@pytest.fixture
def hidden():
    return jax.random.normal(jax.random.key(0), (3, 7, 32))


@pytest.mark.torch
def test_logits_equal_the_torch_references(model, hidden):
    import torch
    import torch_reference

    arrays = published(model.encoder, model.head)
    expected = torch_reference.mlm_logits(
        {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        torch.from_numpy(np.array(hidden)),
        model.encoder.config.layer_norm_epsilon,
    )
    # float32 sums of 32 terms, with logits of up to 5; the contract is 1e-4.
    np.testing.assert_allclose(model.logits(hidden), expected.numpy(), atol=2e-5)


def test_the_decoder_is_the_word_table(model, hidden):
    gradient = jax.grad(lambda m: jnp.sum(jnp.sin(m.logits(hidden))))(model)
    table = np.asarray(gradient.encoder.word_embedding.embedding.get_value())
    assert (np.abs(table).sum(axis=1) > 0).all()  # every row, through the decoder
    assert sum(leaf.shape == (128, 32) for leaf in jax.tree.leaves(model)) == 1


def test_only_a_config_with_head_bias_has_the_two_biases(tiny_config, model, hidden):
    config = dataclasses.replace(tiny_config, head="mlm", head_bias=True)
    biased = MaskedLanguageModel(config, rngs=nnx.Rngs(0))
    assert model.head.bias is None and model.head.dense.bias is None
    assert biased.head.bias is not None
    assert biased.head.bias.shape == (128,) and biased.head.dense.bias.shape == (32,)
    np.testing.assert_array_equal(biased.logits(hidden), model.logits(hidden))
    biased.head.bias.set_value(jnp.arange(128.0))
    np.testing.assert_allclose(
        biased.logits(hidden) - model.logits(hidden),
        np.broadcast_to(np.arange(128.0), (3, 7, 128)),
        atol=2e-5,  # a last place of logits near 128
    )


def test_logits_are_float32_under_bfloat16(tiny_config, model, hidden):
    config = model.encoder.config
    half = MaskedLanguageModel(
        config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16")
    ).logits(hidden.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    exact = np.asarray(model.logits(hidden))
    # 8 bits of precision on each factor.
    assert np.sqrt(np.mean((half - exact) ** 2)) < 0.02 * exact.std() + 0.01
