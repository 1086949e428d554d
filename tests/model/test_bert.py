"""BERT and XLM-R next to transformers' own, on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nomic_jax.batch import Tokens
from nomic_jax.config import ModelConfig
from nomic_jax.data.tokenizer import pad
from nomic_jax.model.encoder import NomicBert

pytestmark = pytest.mark.torch

LENGTHS = (3, 16, 9, 30)
BERT = ModelConfig(
    vocab_size=128,
    type_vocab_size=2,
    num_layers=2,
    width=32,
    num_heads=4,
    mlp_width=64,
    layer_norm_epsilon=1e-12,
    rope_base=None,
    trained_positions=32,
    activation="gelu",
    bias=True,
)
XLM_R = dataclasses.replace(
    BERT,
    type_vocab_size=1,
    pad_token_id=1,
    first_position=2,
    layer_norm_epsilon=1e-5,
)
LAYER = {  # ours next to transformers', of one layer
    "attention.out.kernel": "attention.output.dense.weight",
    "attention.out.bias": "attention.output.dense.bias",
    "attention_norm.scale": "attention.output.LayerNorm.weight",
    "attention_norm.bias": "attention.output.LayerNorm.bias",
    "mlp.up.kernel": "intermediate.dense.weight",
    "mlp.up.bias": "intermediate.dense.bias",
    "mlp.down.kernel": "output.dense.weight",
    "mlp.down.bias": "output.dense.bias",
    "mlp_norm.scale": "output.LayerNorm.weight",
    "mlp_norm.bias": "output.LayerNorm.bias",
}
EMBEDDINGS = {
    "word_embedding.embedding": "word_embeddings.weight",
    "type_embedding.embedding": "token_type_embeddings.weight",
    "position_embedding.embedding": "position_embeddings.weight",
    "embedding_norm.scale": "LayerNorm.weight",
    "embedding_norm.bias": "LayerNorm.bias",
}


def theirs(config):
    import torch
    import transformers

    kinds = {
        0: (transformers.BertConfig, transformers.BertModel),
        2: (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    }
    config_of, model_of = kinds[config.first_position]
    torch.manual_seed(0)
    model = model_of(
        config_of(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.trained_positions + config.first_position,
            type_vocab_size=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_epsilon,
            pad_token_id=config.pad_token_id,
            hidden_act="gelu",
        ),
        add_pooling_layer=False,
    ).eval()
    with torch.no_grad():  # fresh norms and biases would hide what is swapped
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def as_ours(named, config):
    """Put transformers' arrays, parameters or gradients, under our names."""
    width, heads, each = config.width, config.num_heads, config.head_width
    found = {ours: named[f"embeddings.{name}"] for ours, name in EMBEDDINGS.items()}
    layers = []
    for index in range(config.num_layers):
        layer = {
            ours: named[f"encoder.layer.{index}.{name}"] for ours, name in LAYER.items()
        }
        for kind, ending in (("kernel", "weight"), ("bias", "bias")):
            parts = [
                named[f"encoder.layer.{index}.attention.self.{part}.{ending}"]
                for part in ("query", "key", "value")
            ]
            layer[f"attention.qkv.{kind}"] = np.concatenate(parts)
        for name in layer:
            if name.endswith("kernel"):
                layer[name] = layer[name].T
        shape = (3, heads, each)
        kernel = layer["attention.qkv.kernel"].reshape(width, *shape)
        layer["attention.qkv.kernel"] = kernel
        layer["attention.qkv.bias"] = layer["attention.qkv.bias"].reshape(shape)
        out = layer["attention.out.kernel"].reshape(heads, each, width)
        layer["attention.out.kernel"] = out
        layers.append(layer)
    stacked = {f"blocks.{n}": np.stack([la[n] for la in layers]) for n in layers[0]}
    return found | stacked


def path_name(path):
    parts = [str(getattr(key, "name", getattr(key, "key", key))) for key in path]
    return ".".join(part for part in parts if part != "value")


def ours(named, config):
    shapes = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0)))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    arrays = as_ours(named, config)
    assert {path_name(path) for path, _ in paths} == arrays.keys()
    leaves = [jnp.asarray(arrays[path_name(path)]) for path, _ in paths]
    for (path, shape), leaf in zip(paths, leaves, strict=True):
        assert shape.shape == leaf.shape, path_name(path)
    return jax.tree.unflatten(structure, leaves)


def tokens_of(config):
    random = np.random.default_rng(0)
    texts = [random.integers(5, 128, n).astype(np.int32) for n in LENGTHS]
    return pad(texts, length=32, pad_id=config.pad_token_id)


@pytest.mark.parametrize("config", [BERT, XLM_R], ids=["bert", "xlm_r"])
def test_hidden_states_and_gradients_are_those_of_transformers(config):
    import torch

    model, tokens = theirs(config), tokens_of(config)
    ids = torch.from_numpy(np.asarray(tokens.ids, np.int64))
    mask = torch.from_numpy(np.asarray(tokens.mask))
    hidden = model(ids, attention_mask=mask.long()).last_hidden_state
    (torch.sin(hidden) * mask[..., None]).sum().backward()
    named = {name: p.detach().numpy() for name, p in model.named_parameters()}
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}

    def loss(encoder):
        found = encoder(tokens)
        return jnp.sum(jnp.sin(found) * tokens.mask[..., None]), found

    mine = ours(named, config)
    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(mine)
    expected = hidden.detach().numpy()[tokens.mask]
    # Two layers of float32 sums in another order, on states of unit size.
    np.testing.assert_allclose(np.asarray(found)[tokens.mask], expected, atol=5e-6)
    leaves = jax.tree_util.tree_flatten_with_path(gradient)[0]
    largest = max(np.abs(g).max() for g in gradients.values())
    theirs_by_name = as_ours(gradients, config)
    for path, leaf in leaves:
        expected = theirs_by_name[path_name(path)]
        got = np.array(leaf)
        if path_name(path) == "word_embedding.embedding":
            # PyTorch gives the padding row no gradient.
            got[config.pad_token_id] = expected[config.pad_token_id] = 0
        # A bias of the keys changes nothing: its gradient is rounding.
        bound = 1e-4 * np.abs(expected).max() + 1e-6 * largest
        np.testing.assert_allclose(got, expected, atol=bound, err_msg=path_name(path))


def test_packed_texts_have_positions_of_their_own():
    model = NomicBert(BERT, rngs=nnx.Rngs(0))
    apart = tokens_of(BERT)
    first, second = (np.asarray(apart.ids)[i][: LENGTHS[i]] for i in (0, 2))
    joined = np.concatenate([first, second, np.zeros(20, np.int32)])[None]
    segments = np.repeat([1, 2, 0], [len(first), len(second), 20])[None]
    tokens = dataclasses.replace(apart, ids=joined, segment_ids=segments)
    got, expected = np.asarray(model(tokens))[0], np.asarray(model(apart))
    np.testing.assert_allclose(got[:3], expected[0, :3], atol=1e-5)
    np.testing.assert_allclose(got[3:12], expected[2, :9], atol=1e-5)


def test_rows_beyond_the_absolute_positions_are_refused():
    tokens = pad([np.ones(33, np.int32)], length=33, pad_id=0)
    model = NomicBert(BERT, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="33 tokens exceed the 32 absolute positions"):
        model(tokens)


def test_padding_tokens_spelt_out_in_a_text_have_the_positions_of_transformers():
    import torch

    reference = theirs(XLM_R)
    named = {n: p.detach().numpy() for n, p in reference.named_parameters()}
    model, pad_id = ours(named, XLM_R), XLM_R.pad_token_id
    text = np.array([[2, 7, pad_id, 9, pad_id, pad_id, 8, 3]], np.int32)
    with torch.no_grad():
        expected = reference(
            torch.from_numpy(text).long(), torch.ones(1, 8, dtype=torch.long)
        ).last_hidden_state.numpy()
    alone = model(Tokens(text, np.ones_like(text)))
    # Float32 through two layers; a position off by one is off by 0.1 and more.
    np.testing.assert_allclose(alone, expected, atol=5e-6)
    twice = Tokens(np.concatenate([text, text], 1), np.repeat([[1, 2]], 8, 1))
    np.testing.assert_allclose(model(twice)[:, 8:], expected, atol=5e-6)
