"""The published v1.5 weights against transformers' NomicBert, both in float32."""

import dataclasses
import functools
import gzip

import jax
import numpy as np
import pytest

from nomic_jax.batch import Tokens
from nomic_jax.checkpoints.model_folder import load_encoder
from nomic_jax.config import PUBLISHED_EMBEDDINGS
from nomic_jax.data.tokenizer import TextTokenizer, pad
from nomic_jax.model.attention import splash
from nomic_jax.model.encoder import set_attention
from nomic_jax.model.pooling import embed, matryoshka

pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.slow]

NAME = "nomic-embed-text-v1.5"
SWEEP = pytest.mark.sweep  # minutes of computing, most of them PyTorch's
CLS, SEP = 101, 102  # of bert-base-uncased


@pytest.fixture(scope="module")
def folder(real_weights):
    return real_weights / NAME


@pytest.fixture(scope="module")
def model(folder):
    return load_encoder(folder)


@pytest.fixture(scope="module")
def prose(folder, real_data):
    """One long run of token ids of encyclopedia articles, without special ones."""
    path = real_data / "text" / "wikitext-2.valid.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read(200_000)
    tokenizer = TextTokenizer.from_folder(folder)
    return tokenizer.encode([text], max_length=100_000).ids[0][1:-1]


def cut(prose, length, start=0):
    inside = prose[start : start + length - 2]
    return np.concatenate([[CLS], inside, [SEP]]).astype(np.int32)


@jax.jit
def encode(model, tokens):
    hidden = model(tokens)
    pooled = embed(hidden, tokens.segment_ids > 0, PUBLISHED_EMBEDDINGS[NAME])
    return hidden, matryoshka(pooled, 768)


def reference(folder, *, factor=None):
    """A fresh transformers model; its rotary state must never see another text."""
    import transformers
    from safetensors.torch import load_file

    rope = {"rope_type": "default", "rope_theta": 1000.0}
    if factor is not None:
        rope |= {"rope_type": "dynamic", "factor": factor}
    config = transformers.NomicBertConfig(
        vocab_size=30528,
        max_position_embeddings=2048,
        layer_norm_eps=1e-12,
        rope_parameters=rope,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    names = {
        "emb_ln": "embeddings.LayerNorm",
        "encoder.layers": "layers",
        "attn.out_proj": "self_attn.o_proj",
        "mlp.fc11": "mlp.up_proj",
        "mlp.fc12": "mlp.gate_proj",
        "mlp.fc2": "mlp.down_proj",
        "norm1": "post_attention_layernorm",
        "norm2": "post_mlp_layernorm",
    }
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for published, native in names.items():
            name = name.replace(published, native)
        if "attn.Wqkv" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = piece
        else:
            tensors[name] = tensor
    model = transformers.NomicBertModel(config, add_pooling_layer=False)
    model.load_state_dict(tensors)
    return model.eval()


@pytest.fixture(scope="module")
def torch_model(folder):
    return reference(folder)


def torch_hidden(model, tokens):
    import torch

    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(tokens.ids).long(),
            attention_mask=torch.from_numpy(tokens.mask).long(),
        )
    return output.last_hidden_state.numpy()


def v15_embedding(hidden, mask):
    """Mean, layer norm and unit length in float64, by their definitions."""
    weights = mask[..., None].astype(np.float64)
    x = (hidden * weights).sum(1) / weights.sum(1)
    x = x - x.mean(1, keepdims=True)
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def distances(got, expected, mask):
    """The largest difference of each token's hidden state."""
    return np.abs(np.asarray(got) - expected)[mask].max(axis=-1)


def assert_embeddings_agree(got, hidden, mask):
    expected = v15_embedding(hidden, mask)
    assert np.abs(got - expected).max() < 1e-5
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1)
    assert cosine.min() > 0.999999


BATCHES = [
    [3],
    [3, 5],
    [17, 4, 33],
    [64, 9, 33, 17],
    [100, 3, 64, 31, 8],
    [128, 8, 20, 31, 45, 64],
    [200, 3, 8, 20, 131, 45, 64],
    [256, 3, 8, 20, 31, 45, 100, 128],
    [512, 300],
]


@pytest.mark.parametrize("lengths", BATCHES, ids=lambda x: f"{len(x)}x{max(x)}")
def test_hidden_states_and_embeddings_equal_torchs(model, torch_model, prose, lengths):
    texts = [cut(prose, length, 500 * i) for i, length in enumerate(lengths)]
    tokens = pad(texts, length=max(lengths), pad_id=0)
    hidden, embedding = encode(model, tokens)
    expected = torch_hidden(torch_model, tokens)
    assert distances(hidden, expected, tokens.mask).max() < 5e-5
    assert_embeddings_agree(np.asarray(embedding), expected, tokens.mask)


@pytest.mark.parametrize(
    "lengths", [[1024], pytest.param([2048], marks=SWEEP), [2048, 700]], ids=str
)
def test_long_texts_equal_torchs_as_nearly_as_torch_equals_itself(
    model, torch_model, prose, lengths
):
    texts = [cut(prose, length, 3000 * i) for i, length in enumerate(lengths)]
    tokens = pad(texts, length=max(lengths), pad_id=0)
    hidden, embedding = encode(model, tokens)
    expected = torch_hidden(torch_model, tokens)
    token = distances(hidden, expected, tokens.mask)
    # Single tokens amplify rounding: PyTorch's own two attention kernels differ by up
    # to 9e-5 there, and each is as far from float64. All but those stay within 5e-5.
    assert np.quantile(token, 0.998) < 5e-5
    assert token.max() < 2e-4
    assert_embeddings_agree(np.asarray(embedding), expected, tokens.mask)


@pytest.mark.parametrize("length", [3000, pytest.param(8192, marks=SWEEP)])
def test_dynamic_ntk_equals_a_fresh_torch_model(folder, model, prose, length):
    stretched = jax.tree.map(lambda leaf: leaf, model)
    stretched.config = dataclasses.replace(model.config, rope_scaling_factor=2.0)
    tokens = pad([cut(prose, length)], length=length, pad_id=0)
    hidden, embedding = encode(stretched, tokens)
    expected = torch_hidden(reference(folder, factor=2.0), tokens)
    token = distances(hidden, expected, tokens.mask)
    assert np.quantile(token, 0.998) < 1e-4
    assert token.max() < 4e-4
    assert_embeddings_agree(np.asarray(embedding), expected, tokens.mask)


@pytest.mark.parametrize(
    ("backend", "dtype", "least"),
    [
        # bfloat16 keeps 8 bits, so a product is right to 0.2 %: behind 12 layers an
        # angle of 0.03 at most is left of it.
        ("blockwise", "bfloat16", 0.9995),
        ("splash", "float32", 0.999999),
        ("splash", "bfloat16", 0.9995),
        pytest.param("cudnn", "bfloat16", 0.9995, marks=pytest.mark.gpu),
        pytest.param("tokamax", "bfloat16", 0.9995, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize(
    "lengths", [[128, 3, 45, 64], pytest.param([512, 300], marks=SWEEP)], ids=str
)
def test_whichever_backend_computes_attention_embeddings_point_where_torchs_do(
    folder, torch_model, prose, lengths, backend, dtype, least, monkeypatch
):
    encoder = load_encoder(folder, dtype=dtype)
    if backend == "splash":  # the TPU's kernel, step by step
        interpreted = functools.partial(splash.attend, interpret=True)
        monkeypatch.setattr(splash, "attend", interpreted)
        encoder.platform = "tpu"
    rows = [(max(lengths), 1)]
    assert set_attention(encoder, backend, rows=rows, devices=1) == backend
    texts = [cut(prose, length, 500 * i) for i, length in enumerate(lengths)]
    tokens = dataclasses.replace(pad(texts, length=max(lengths), pad_id=0), texts=1)
    got = np.asarray(encode(encoder, tokens)[1])
    expected = v15_embedding(torch_hidden(torch_model, tokens), tokens.mask)
    assert (got * expected).sum(1).min() > least


def test_a_text_between_lengths_is_itself_in_any_bucket(model, prose):
    text = cut(prose, 700)
    alone = Tokens(text[None], np.ones((1, 700), np.int32))
    padded = pad([text], length=768, pad_id=0)
    got, expected = encode(model, padded)[1], encode(model, alone)[1]
    # float32 sums in other blocks.
    np.testing.assert_allclose(got, expected, atol=1e-6)
