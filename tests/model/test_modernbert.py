"""ModernBERT next to transformers' own, on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nomic_jax.batch import Tokens
from nomic_jax.config import PUBLISHED, ModelConfig
from nomic_jax.data.tokenizer import pad
from nomic_jax.model.encoder import NomicBert, layer_places
from nomic_jax.training.optimizer import named_arrays, parameter_name

TINY = ModelConfig(
    vocab_size=128,
    type_vocab_size=0,
    num_layers=6,  # the first, a group of three, and two more
    width=32,
    num_heads=2,
    mlp_width=48,
    layer_norm_epsilon=1e-5,
    rope_base=160000.0,
    trained_positions=64,
    activation="geglu",
    pre_norm=True,
    norm_bias=False,
    global_every=3,
    local_window=4,
    local_rope_base=10000.0,
    pad_token_id=3,
    initializer_range=0.2,
)
LENGTHS = (3, 40, 17, 33)
KINDS = {  # ours next to transformers', of one layer
    "attention.qkv.kernel": "attn.Wqkv.weight",
    "attention.out.kernel": "attn.Wo.weight",
    "attention_norm.scale": "attn_norm.weight",
    "mlp_norm.scale": "mlp_norm.weight",
    "mlp.down.kernel": "mlp.Wo.weight",
}
TABLES = {
    "word_embedding.embedding": "embeddings.tok_embeddings.weight",
    "embedding_norm.scale": "embeddings.norm.weight",
    "final_norm.scale": "final_norm.weight",
}


def theirs(config, attention):
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.trained_positions,
            norm_eps=config.layer_norm_epsilon,
            pad_token_id=config.pad_token_id,
            local_attention=2 * config.local_window,
            attn_implementation=attention,
        )
    ).eval()
    with torch.no_grad():  # fresh norms would hide what is swapped
        for parameter in model.parameters():
            parameter += (0.02 if config.width > 100 else 0.1) * torch.randn_like(
                parameter
            )
    return model


def as_ours(named, config):
    """Put transformers' arrays, parameters or gradients, under our names."""
    found = {ours: named[name] for ours, name in TABLES.items()}
    heads = (config.num_heads, config.head_width)
    for place in layer_places(config):
        each = []
        for number in place.layers:
            layer = {
                ours: named[f"layers.{number}.{name}"]
                for ours, name in KINDS.items()
                if f"layers.{number}.{name}" in named
            }
            gate, up = np.split(named[f"layers.{number}.mlp.Wi.weight"], 2)
            layer |= {"mlp.gate.kernel": gate, "mlp.up.kernel": up}
            layer = {n: a.T if n.endswith("kernel") else a for n, a in layer.items()}
            for name, shape in (
                ("attention.qkv.kernel", (config.width, 3, *heads)),
                ("attention.out.kernel", (*heads, config.width)),
            ):
                layer[name] = layer[name].reshape(shape)
            each.append(layer)
        for name in each[0]:
            array = np.stack([layer[name] for layer in each])
            found[f"{place.path}.{name}"] = array if place.stacked else array[0]
    return found


def ours(named, config):
    shapes = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0)))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    arrays = as_ours(named, config)
    sizes = {parameter_name(path): shape.shape for path, shape in paths}
    assert sizes == {name: array.shape for name, array in arrays.items()}
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in sizes])


def tokens_of(config, lengths=LENGTHS):
    random = np.random.default_rng(0)
    texts = [random.integers(5, config.vocab_size, n).astype(np.int32) for n in lengths]
    return pad(texts, length=max(lengths), pad_id=config.pad_token_id)


def torch_inputs(tokens):
    import torch

    ids = torch.from_numpy(np.asarray(tokens.ids)).long()
    return {"input_ids": ids, "attention_mask": torch.from_numpy(tokens.mask).long()}


def numpy_of(model, gradient=False):
    return {
        name: (value.grad if gradient else value.detach()).numpy()
        for name, value in model.named_parameters()
    }


@pytest.mark.torch
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_states_and_gradients_equal_transformers(attention):
    import torch

    reference, tokens = theirs(TINY, attention), tokens_of(TINY)
    model, held = ours(numpy_of(reference), TINY), np.asarray(tokens.mask)
    direction = np.random.default_rng(1).normal(size=(*held.shape, TINY.width))
    direction = (direction * held[..., None]).astype(np.float32)

    hidden = reference(**torch_inputs(tokens)).last_hidden_state
    (hidden * torch.from_numpy(direction)).sum().backward()
    got = jax.jit(lambda m: m(tokens))(model)
    # Float32 through six layers of width 32; 2e-6 was the largest difference.
    hidden = hidden.detach().numpy()
    np.testing.assert_allclose(np.asarray(got)[held], hidden[held], atol=2e-5)

    found = jax.jit(jax.grad(lambda m: (m(tokens) * direction).sum()))(model)
    expected = as_ours(numpy_of(reference, gradient=True), TINY)
    largest = max(np.abs(array).max() for array in expected.values())
    for name, array in named_arrays(found).items():
        room = 1e-4 * np.abs(expected[name]).max() + 1e-7 * largest
        np.testing.assert_allclose(array, expected[name], atol=room, err_msg=name)


@pytest.mark.torch
def test_each_layers_states_and_attention_equal_transformers():
    reference, tokens = theirs(TINY, "eager"), tokens_of(TINY)
    model, held = ours(numpy_of(reference), TINY), np.asarray(tokens.mask)
    seen = reference(
        **torch_inputs(tokens), output_hidden_states=True, output_attentions=True
    )
    got = jax.jit(lambda m: m.encode(tokens, states=True, attention=True))(model)
    assert len(seen.hidden_states) == len(got.states) == TINY.num_layers + 1
    for mine, other in zip(got.states, seen.hidden_states, strict=True):
        other = other.detach().numpy()
        np.testing.assert_allclose(np.asarray(mine)[held], other[held], atol=2e-5)
    for mine, other in zip(got.attention, seen.attentions, strict=True):
        # Queries of padding mean nothing on either side.
        mine, other = (np.moveaxis(np.asarray(x), 1, 2) for x in (mine, other.detach()))
        np.testing.assert_allclose(mine[held], other[held], atol=2e-6)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.optimized  # it computes for seconds
@pytest.mark.parametrize("length", [2048, pytest.param(8192, marks=pytest.mark.sweep)])
def test_the_published_sizes_equal_transformers_on_long_texts(length):
    import torch

    config = dataclasses.replace(
        PUBLISHED["modernbert-embed-base"],
        vocab_size=2048,
        num_layers=4,
        pad_token_id=0,
    )
    reference, tokens = theirs(config, "sdpa"), tokens_of(config, (length,))
    model = ours(numpy_of(reference), config)
    with torch.no_grad():
        expected = reference(**torch_inputs(tokens)).last_hidden_state.numpy()
    got = np.asarray(jax.jit(lambda m: m(tokens))(model))
    # Sums over up to 8,192 tokens in float32, in another order.
    np.testing.assert_allclose(got, expected, atol=5e-5)


@pytest.mark.slow
def test_packed_texts_equal_unpacked_ones():
    model = NomicBert(TINY, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    texts = [random.integers(5, 128, n).astype(np.int32) for n in (20, 9, 30)]
    alone = pad(texts, length=32, pad_id=TINY.pad_token_id)
    segments = np.repeat([1, 2, 3, 0], [20, 9, 30, 5])[None].astype(np.int32)
    ids = np.pad(np.concatenate(texts), (0, 5), constant_values=3)[None]
    packed = Tokens(ids, segments)
    direction = np.random.default_rng(1).normal(size=(59, TINY.width))
    direction = jnp.asarray(direction, jnp.float32)

    def of(model, tokens):
        held = np.flatnonzero(tokens.mask)
        hidden = model(tokens).reshape(-1, TINY.width)[held]
        return (hidden * direction).sum(), hidden

    def take(tokens):
        return jax.jit(jax.value_and_grad(lambda m: of(m, tokens), has_aux=True))(model)

    (_, one), gradient = take(packed)
    (_, other), expected = take(alone)
    # Sums over other numbers of columns, in float32.
    np.testing.assert_allclose(one, other, atol=2e-5)
    for name, array in named_arrays(expected).items():
        room = 1e-5 * np.abs(array).max()
        got = named_arrays(gradient)[name]
        np.testing.assert_allclose(got, array, atol=room, err_msg=name)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7, 22])
def test_every_layer_has_one_place(layers):
    places = layer_places(dataclasses.replace(TINY, num_layers=layers))
    numbers = [number for place in places for number in place.layers]
    assert sorted(numbers) == list(range(layers))
    for place in places:
        assert {bool(number % 3) for number in place.layers} == {place.local}
        assert place.attention_norm == (0 not in place.layers)
