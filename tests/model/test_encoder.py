import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_names import published

from nomic_jax.batch import Tokens
from nomic_jax.data.tokenizer import pad
from nomic_jax.model.encoder import Context, NomicBert, drop
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.model.rope import rotary_table

# Short, at the trained length of 16, and beyond it, where Dynamic NTK acts.
LENGTHS = (3, 16, 9, 40, 25)


@jax.jit
def encode(model, tokens):
    return model(tokens)


def random_texts(lengths=LENGTHS, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(5, 128, length).astype(np.int32) for length in lengths]


def padded(texts, extra=0):
    return pad(texts, length=max(map(len, texts)) + extra, pad_id=0)


def perturbed(model, seed):
    """Fresh norms are 1 and 0; other values show where they are swapped or dropped."""
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ],
    )


@jax.jit
def blocks_in_a_loop(model, tokens):
    """The hidden states after the embeddings and after each layer, without a scan."""
    x = model.word_embedding(tokens.ids)
    types = jnp.zeros_like(tokens.ids) if tokens.type_ids is None else tokens.type_ids
    x = model.embedding_norm(x + model.type_embedding(types))
    segment_ids = jnp.asarray(tokens.segment_ids)
    rotary = rotary_table(model.config, segment_ids)
    context = Context(segment_ids, None, rotary, None, None)
    states = [x]
    for index in range(model.config.num_layers):
        block = jax.tree.map(lambda weights, i=index: weights[i], model.blocks)
        x, _ = block(x, context, index)
        states.append(x)
    return states


def reference_of(config):
    import torch_reference

    return torch_reference.Shape(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        epsilon=config.layer_norm_epsilon,
        base=config.rope_base,
        trained=config.trained_positions,
        factor=config.rope_scaling_factor,
    )


def as_torch(array):
    import torch

    return torch.from_numpy(np.array(array))


@pytest.mark.torch
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("with_types", [False, True])
def test_every_layer_equals_the_torch_reference(tiny_config, seed, with_types):
    import torch_reference

    config = dataclasses.replace(tiny_config, num_layers=4)
    model = perturbed(NomicBert(config, rngs=nnx.Rngs(seed)), seed)
    tokens = padded(random_texts(seed=seed))
    if with_types:
        types = np.random.default_rng(seed).integers(0, 2, tokens.ids.shape)
        tokens = dataclasses.replace(tokens, type_ids=types.astype(np.int32))
    expected = torch_reference.hidden_states(
        {name: as_torch(array) for name, array in published(model).items()},
        as_torch(tokens.ids).long(),
        as_torch(tokens.mask),
        reference_of(config),
        as_torch(tokens.type_ids).long() if with_types else None,
    )
    got = blocks_in_a_loop(model, tokens)
    assert len(got) == len(expected) == config.num_layers + 1
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        # float32 sums of at most 64 terms, four layers deep; measured below 1e-5.
        np.testing.assert_allclose(
            np.asarray(ours)[tokens.mask],
            theirs.numpy()[tokens.mask],
            atol=5e-5,
            err_msg=f"after layer {index}",
        )
    np.testing.assert_allclose(
        np.asarray(encode(model, tokens))[tokens.mask],
        expected[-1].numpy()[tokens.mask],
        atol=5e-5,
    )


@pytest.mark.torch
def test_gradients_equal_the_torch_references(tiny_config):
    import torch
    import torch_reference

    config = dataclasses.replace(tiny_config, head="mlm")
    model = perturbed(MaskedLanguageModel(config, rngs=nnx.Rngs(0)), 0)
    tokens = padded(random_texts())
    direction = np.random.default_rng(1).normal(size=(*tokens.ids.shape, 128))
    direction = (direction * tokens.mask[..., None]).astype(np.float32)

    def loss(model):
        return jnp.mean(
            jnp.sin(model.logits(encode(model.encoder, tokens))) * direction
        )

    gradient = jax.grad(loss)(model)
    got = published(gradient.encoder, gradient.head)
    weights = {
        name: as_torch(array).requires_grad_()
        for name, array in published(model.encoder, model.head).items()
    }
    hidden = torch_reference.hidden_states(
        weights,
        as_torch(tokens.ids).long(),
        as_torch(tokens.mask),
        reference_of(config),
    )[-1]
    logits = torch_reference.mlm_logits(weights, hidden, config.layer_norm_epsilon)
    torch.mean(torch.sin(logits) * as_torch(direction)).backward()
    for name, weight in weights.items():
        expected = weight.grad.numpy()
        # Relative to the tensor's largest entry, as single entries may cancel to 0.
        np.testing.assert_allclose(
            got[name], expected, atol=1e-4 * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.slow
def test_padding_never_changes_a_hidden_state(tiny_model):
    texts = random_texts()
    alone = [np.asarray(encode(tiny_model, padded([text])))[0] for text in texts]
    for extra in (0, 1, 7, 64):
        got = np.asarray(encode(tiny_model, padded(texts, extra)))
        for row, expected in enumerate(alone):
            # float32 sums of at most 104 terms in another order: a few last places.
            np.testing.assert_allclose(
                got[row, : len(expected)], expected, atol=1e-5, err_msg=f"{extra=}"
            )


@pytest.mark.optimized
def test_what_stands_at_padding_is_never_read(tiny_model):
    tokens = padded(random_texts(), 5)
    other = np.where(tokens.mask, tokens.ids, 99).astype(np.int32)
    got = encode(tiny_model, Tokens(other, tokens.segment_ids))
    np.testing.assert_array_equal(
        np.asarray(got)[tokens.mask],
        np.asarray(encode(tiny_model, tokens))[tokens.mask],
    )


@pytest.mark.slow
@pytest.mark.parametrize("columns", [3072, 8192])
def test_padding_never_changes_a_text_of_2500_tokens(tiny_config, columns):
    config = dataclasses.replace(tiny_config, trained_positions=2048)
    model = NomicBert(config, rngs=nnx.Rngs(0))
    texts = random_texts([2500])
    alone = np.asarray(encode(model, padded(texts)))[0]
    got = np.asarray(encode(model, pad(texts, length=columns, pad_id=0)))[0, :2500]
    # Softmax sums of 2,500 terms in other blocks. The base of 8,192 in place of 2,500
    # moves hidden states by more than 0.1.
    np.testing.assert_allclose(got, alone, atol=2e-5)


def test_the_order_of_rows_is_irrelevant(tiny_model):
    tokens = padded(random_texts())
    order = np.array([3, 1, 4, 0, 2])
    got = encode(tiny_model, jax.tree.map(lambda leaf: leaf[order], tokens))
    np.testing.assert_allclose(
        got, np.asarray(encode(tiny_model, tokens))[order], atol=1e-5
    )


def packed_row(texts, extra=2):
    ids = np.concatenate([*texts, np.zeros(extra, np.int32)])
    lengths = [len(text) for text in texts]
    segments = np.repeat(np.arange(1, len(texts) + 1), lengths)
    segments = np.concatenate([segments, np.zeros(extra, int)]).astype(np.int32)
    return Tokens(ids[None], segments[None])


@pytest.mark.slow
def test_packed_texts_equal_texts_in_rows_of_their_own(tiny_model):
    texts = random_texts((9, 40, 25))  # two bases beyond the trained length in one row
    packed, apart = packed_row(texts), padded(texts)
    random = np.random.default_rng(2)
    direction = random.normal(size=(int(packed.mask.sum()), 32)).astype(np.float32)

    def tokens_of(model, tokens):
        return encode(model, tokens)[np.nonzero(tokens.mask)]

    np.testing.assert_allclose(
        tokens_of(tiny_model, packed), tokens_of(tiny_model, apart), atol=1e-5
    )

    def gradient(tokens):
        return jax.grad(
            lambda model: jnp.sum(jnp.sin(tokens_of(model, tokens)) * direction)
        )(tiny_model)

    got, expected = published(gradient(packed)), published(gradient(apart))
    for name, array in expected.items():
        # Sums over 74 tokens in another order, relative to the largest entry.
        np.testing.assert_allclose(
            got[name], array, atol=1e-5 * np.abs(array).max(), err_msg=name
        )


@pytest.mark.slow
def test_the_scan_equals_a_loop_over_blocks(tiny_config):
    config = dataclasses.replace(tiny_config, num_layers=5)
    model = NomicBert(config, rngs=nnx.Rngs(0))
    tokens = padded(random_texts())
    # The same operations, compiled apart: a few last places a layer.
    np.testing.assert_allclose(
        encode(model, tokens), blocks_in_a_loop(model, tokens)[-1], atol=1e-5
    )


@pytest.mark.slow
def test_a_row_beyond_the_trained_length_is_refused_without_a_factor(tiny_config):
    config = dataclasses.replace(tiny_config, rope_scaling_factor=None)
    model = NomicBert(config, rngs=nnx.Rngs(0))
    assert model(padded(random_texts([16]))).shape == (1, 16, 32)
    with pytest.raises(ValueError, match="17 tokens exceed the 16 .*scaling_factor"):
        model(padded(random_texts([17])))


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_neither_rematerialisation_nor_unrolling_changes_gradients(
    tiny_config, tiny_model, remat, unroll
):
    tokens = padded(random_texts())
    frugal = NomicBert(tiny_config, rngs=nnx.Rngs(0), remat=remat)

    def gradient(model, **asked):
        def value(model):
            return jnp.sum(jnp.sin(model.encode(tokens, **asked).hidden))

        return published(jax.jit(jax.grad(value))(model))

    got, expected = gradient(frugal, unroll=unroll), gradient(tiny_model)
    for name, array in expected.items():
        np.testing.assert_allclose(
            got[name], array, atol=1e-5 * np.abs(array).max(), err_msg=name
        )
    traced = str(jax.make_jaxpr(jax.grad(lambda m: jnp.sum(m(tokens))))(frugal))
    assert ("remat" in traced) == (remat != "none")


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "length"), [(16, 64), (1, 640)])
def test_what_layers_keep_is_what_memory_goes_to(tiny_config, rows, length):
    config = dataclasses.replace(tiny_config, num_layers=8, trained_positions=length)
    ids = np.ones((rows, length), np.int32)

    def temporaries(remat):
        model = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0), remat=remat))
        gradient = jax.jit(jax.grad(lambda model: jnp.sum(model(Tokens(ids, ids)))))
        return gradient.lower(model).compile().memory_analysis().temp_size_in_bytes

    kept = {remat: temporaries(remat) for remat in ("none", "dots", "full")}
    # Each of 8 layers: what a token and weights make, 9 x 32 float32 in all.
    products = 8 * rows * length * 9 * 32 * 4
    assert kept["none"] > 1.2 * kept["dots"]
    assert kept["dots"] - kept["full"] == pytest.approx(products, rel=0.2)


@pytest.fixture
def dropping_model(tiny_config):
    config = dataclasses.replace(tiny_config, dropout=0.3)
    return NomicBert(config, rngs=nnx.Rngs(0))


def token_keys(seed, tokens):
    return jax.random.split(jax.random.key(seed), tokens.ids.shape)


@pytest.mark.slow
def test_dropout_follows_the_row_and_not_its_place(dropping_model):
    tokens = padded(random_texts())
    keys = token_keys(0, tokens)
    order = np.array([3, 1, 4, 0, 2])
    got = dropping_model(
        jax.tree.map(lambda leaf: leaf[order], tokens), dropout_keys=keys[order]
    )
    expected = np.asarray(dropping_model(tokens, dropout_keys=keys))
    np.testing.assert_allclose(got, expected[order], atol=1e-5)


@pytest.mark.optimized
def test_without_keys_nothing_is_dropped(dropping_model, tiny_model):
    tokens = padded(random_texts())
    off, never = (
        jax.jit(lambda model: model(tokens))(model)
        for model in (dropping_model, tiny_model)
    )
    np.testing.assert_array_equal(off, never)


@pytest.mark.slow
def test_dropout_differs_by_key_and_layer(dropping_model):
    tokens = padded(random_texts())
    off = np.asarray(encode(dropping_model, tokens))
    one, two = (
        np.asarray(dropping_model(tokens, dropout_keys=token_keys(seed, tokens)))
        for seed in (0, 1)
    )
    assert np.abs(one - off).mean() > 0.05
    assert np.abs(one - two).mean() > 0.05


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_at_its_rate_and_keeps_the_mean(rate):
    x = jnp.ones((2, 100, 200))
    got = np.asarray(drop(x, rate, jax.random.split(jax.random.key(0), (2, 100))))
    # 40,000 draws: four standard deviations are 0.01.
    assert abs(np.mean(got == 0) - rate) < 0.01
    np.testing.assert_allclose(got[got != 0], 1 / (1 - rate), rtol=1e-6)
    assert (got[0] != got[1]).any()


def test_an_empty_row_has_finite_values_and_gradients(tiny_model):
    tokens = pad(random_texts([9]), length=20, rows=3, pad_id=0)
    value, gradient = jax.value_and_grad(
        lambda model: jnp.sum(jnp.sin(encode(model, tokens)))
    )(tiny_model)
    assert np.isfinite(value)
    for name, array in published(gradient).items():
        assert np.isfinite(array).all(), name


def test_bfloat16_computes_beside_float32_weights(tiny_config, tiny_model):
    model = NomicBert(tiny_config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model)} == {"float32"}
    tokens = padded(random_texts())
    got = model(tokens)
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(encode(tiny_model, tokens))[tokens.mask]
    error = np.asarray(got, np.float32)[tokens.mask] - exact
    # bfloat16 keeps 8 bits, a relative 0.004 a step, over two layers of unit scale.
    assert np.sqrt(np.mean(error**2)) < 0.03


def test_a_fresh_model_has_the_published_initialisation(tiny_config):
    config = dataclasses.replace(tiny_config, initializer_range=0.02, width=64)
    arrays = published(NomicBert(config, rngs=nnx.Rngs(0)))
    words = arrays["embeddings.word_embeddings.weight"]
    assert not words[config.pad_token_id].any()
    for name, array in arrays.items():
        if array.ndim == 1:
            np.testing.assert_array_equal(array, name.endswith("weight"), name)
        elif array.size > 1000:
            # 2,000 draws or more: four standard deviations are 6 percent.
            assert abs(array.std() / 0.02 - 1) < 0.06, name
    layers = [arrays[f"encoder.layers.{i}.mlp.fc2.weight"] for i in (0, 1)]
    assert (layers[0] != layers[1]).any()


def test_a_model_is_a_pytree_under_jit_and_grad(tiny_model):
    tokens = padded(random_texts())
    np.testing.assert_allclose(
        encode(tiny_model, tokens), tiny_model(tokens), atol=1e-5
    )
