import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_names import published
from transformers_heads import BERT, MODERN, NOMIC, XLM_R, drawn

from nomic_jax.data.tokenizer import pad
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import (
    MaskedLanguageModel,
    TextClassifier,
    TokenClassifier,
    Transform,
    head_class,
    last_layer,
    make_model,
)

MOE = dataclasses.replace(
    NOMIC, activation="gelu", bias=True, num_experts=4, type_vocab_size=1
)
FAMILIES = ["bert", "xlm_r", "nomic", "moe", "modern"]


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


@pytest.mark.slow
def test_the_decoder_is_the_word_table(model, hidden):
    gradient = jax.grad(lambda m: jnp.sum(jnp.sin(m.logits(hidden))))(model)
    table = np.asarray(gradient.encoder.word_embedding.embedding.get_value())
    assert (np.abs(table).sum(axis=1) > 0).all()  # every row, through the decoder
    assert sum(leaf.shape == (128, 32) for leaf in jax.tree.leaves(model)) == 1


@pytest.mark.optimized
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


def all_heads(config):
    """The config with each head that its family has."""
    heads = {
        "mlm": {"head_bias": True},
        "sequence_classification": {"labels": ("a", "b", "c"), "problem": "one_label"},
        "token_classification": {"labels": ("a", "b", "c")},
        "question_answering": {},
        "multiple_choice": {},
    }
    if not config.pre_norm:
        heads["pooler"] = {}
    if config.type_vocab_size > 1:
        heads |= {"next_sentence": {}, "pretraining": {"head_bias": True}}
    for head, more in heads.items():
        yield dataclasses.replace(config, head=head, **more)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [BERT, XLM_R, NOMIC, MOE, MODERN], ids=FAMILIES)
def test_every_head_scores_in_float32_and_in_its_shape(config, dtype):
    tokens = pad([np.arange(5, 9, dtype=np.int32)] * 6, length=8, pad_id=0)
    vocabulary = config.vocab_size
    shapes = {
        "mlm": [(6, 8, vocabulary)],
        "pretraining": [(6, 8, vocabulary), (6, 2)],
        "next_sentence": [(6, 2)],
        "pooler": [(6, config.width)],
        "sequence_classification": [(6, 3)],
        "token_classification": [(6, 8, 3)],
        "question_answering": [(6, 8, 2)],
        "multiple_choice": [(6,)],
    }
    for each in all_heads(config):

        def scores(each=each):
            rngs = nnx.Rngs(0)
            model = make_model(each, rngs=rngs, dtype=jnp.dtype(dtype))
            assert type(model) is head_class(each)
            return model.scores(tokens)

        found = jax.tree.leaves(jax.eval_shape(scores))
        assert [array.shape for array in found] == shapes[each.head]
        assert all(array.dtype == jnp.float32 for array in found)


def test_without_a_head_there_is_the_encoder():
    model = jax.eval_shape(lambda: make_model(BERT, rngs=nnx.Rngs(0)))
    assert isinstance(model, NomicBert) and head_class(BERT) is NomicBert


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_no_score_of_a_text(pooling):
    config = dataclasses.replace(MODERN, head="multiple_choice", head_pooling=pooling)
    model, random = drawn(config), np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(2, 8, 32)), jnp.float32)
    mask = jnp.arange(8)[None] < jnp.array([6, 3])[:, None]
    other = jnp.where(mask[..., None], hidden, 1e3)
    np.testing.assert_array_equal(
        model.head_scores(hidden, mask), model.head_scores(other, mask)
    )
    first = jnp.zeros_like(mask).at[:, 0].set(True)
    from_first = model.head_scores(hidden, first)  # the mean of one is the first
    assert (pooling == "cls") == bool(
        (from_first == model.head_scores(hidden, mask)).all()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TextClassifier, TokenClassifier])
def test_dropout_of_a_head_drops_its_share_by_the_tokens_keys(kind):
    head = {TextClassifier: "sequence_classification"}.get(kind, "token_classification")
    problem = "one_label" if kind is TextClassifier else None
    config = dataclasses.replace(
        BERT, head=head, labels=("a",), problem=problem, head_dropout=0.5
    )
    model = drawn(config)
    assert type(model) is kind
    model.classifier.kernel.set_value(jnp.ones((32, 1)))
    rows = 2048
    hidden = jnp.broadcast_to(jnp.linspace(0.5, 1.5, 32), (rows, 2, 32))
    mask = jnp.ones((rows, 2), bool)
    keys = jax.random.split(jax.random.key(0), (rows, 2))
    plain = model.head_scores(hidden, mask)
    dropped = model.head_scores(hidden, mask, dropout_keys=keys)
    assert (dropped.std(axis=0) > 0.1 * np.abs(plain[0]).max() / 32).all()
    # Half of 32 terms, doubled: the mean of so many rows is within 5 deviations.
    deviation = np.asarray(dropped.std(axis=0)) / rows**0.5
    assert (np.abs(dropped.mean(axis=0) - plain[0]) < 5 * deviation).all()
    again = model.head_scores(hidden[:7], mask[:7], dropout_keys=keys[:7])
    # The same are dropped; sums of 32 terms are in another order.
    np.testing.assert_allclose(again, dropped[:7], atol=1e-5)


def test_fresh_classifiers_of_pre_norm_models_keep_the_size_of_what_goes_in():
    rngs = nnx.Rngs(0)
    kernel = np.asarray(last_layer(MODERN, 8, rngs=rngs).kernel.get_value())
    # 256 draws: the deviation of a deviation is 4 %; of 1,024, 2 %.
    assert kernel.std() == pytest.approx(32**-0.5, rel=0.2)
    transform = Transform(MODERN, dtype=jnp.dtype("float32"), rngs=rngs)
    dense = np.asarray(transform.dense.kernel.get_value())
    assert dense.std() == pytest.approx(0.02 / (2 * MODERN.num_layers) ** 0.5, rel=0.1)
    assert transform.dense.bias is None and transform.norm.bias is None
