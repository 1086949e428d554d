"""A dense layer after the pooling: read, applied, written, as sentence-transformers."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.sentence_transformers import read_dense, write_dense
from nomic_jax.checkpoints.writer import write_checkpoint
from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.pooling import Projection

TEXTS = ["The fox jumps over the dog.", "Foxes", "A dog sleeps, and sleeps, again."]


def projection(width=32, outputs=6, *, bias=True, activation="tanh"):
    random = np.random.default_rng(0)
    kernel = random.normal(size=(width, outputs)).astype(np.float32)
    offsets = random.normal(size=outputs).astype(np.float32)
    return Projection(kernel, offsets if bias else None, activation=activation)


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    """A model of ours with a projection next to it."""
    config = dataclasses.replace(tiny_config, rope_scaling_factor=None)
    tokenizer = TextTokenizer.train(TEXTS * 3, vocab_size=100)
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=16)
    model = NomicBert(config, rngs=nnx.Rngs(0))
    made = tmp_path_factory.mktemp("dense") / "model"
    save_model(model, config, embedding, tokenizer, made)
    write_dense(made / "projection", projection())
    return made


def test_the_layer_is_a_product_a_bias_and_a_tanh():
    layer, x = projection(), np.random.default_rng(1).normal(size=(5, 32))
    kernel, bias = (np.asarray(a[...], np.float64) for a in (layer.kernel, layer.bias))
    got = layer(jnp.asarray(x, jnp.float32))
    # float32 sums of 32 products.
    np.testing.assert_allclose(got, np.tanh(x @ kernel + bias), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_a_layer_there_and_back_is_the_same(tmp_path, bias, activation):
    written = projection(bias=bias, activation=activation)
    write_dense(tmp_path / "layer", written)
    got = read_dense(tmp_path / "layer", 32)
    assert got.activation == activation
    np.testing.assert_array_equal(got.kernel[...], written.kernel[...])
    assert (got.bias is None) == (written.bias is None)
    if bias:
        np.testing.assert_array_equal(got.bias[...], written.bias[...])


@pytest.mark.parametrize("layout", ["jax", "nomic", "transformers"])
def test_every_layout_carries_it_along(folder, tmp_path, layout):
    checkpoint = read_checkpoint(folder)
    write_checkpoint(checkpoint, tmp_path / "model", layout=layout)
    ours = Embedder.from_pretrained(folder).encode_query(TEXTS)
    assert ours.shape == (3, 6)
    got = Embedder.from_pretrained(tmp_path / "model").encode_query(TEXTS)
    np.testing.assert_array_equal(got, ours)
    bare = Embedder.from_pretrained(folder)
    bare = Embedder(bare.model, bare.tokenizer, bare.config)
    assert bare.encode_query(TEXTS).shape == (3, 32)


@pytest.mark.torch
def test_sentence_transformers_reads_what_is_written_and_embeds_alike(folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    place = tmp_path / "model"
    write_checkpoint(read_checkpoint(folder), place, layout="sentence-transformers")
    theirs = SentenceTransformer(str(place), device="cpu").encode_query(TEXTS)
    ours = Embedder.from_pretrained(place).encode_query(TEXTS)
    # Two orders of float32 summation over two layers, on unit vectors.
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.ReLU"}, "must be .*Tanh"),
        ({"in_features": 64}, "in_features=64 must be the pooled width 32"),
        ({"out_features": 7}, r"\(7, 32\)"),
        ({"use_residual": True}, "use_residual=True is not implemented"),
        ({"scale": 2}, "scale=2 is not implemented"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_emb"),
    ],
)
def test_another_kind_of_layer_is_refused(tmp_path, change, message):
    write_dense(tmp_path / "layer", projection())
    path = tmp_path / "layer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_dense(tmp_path / "layer", 32)


@pytest.mark.parametrize("there", [True, False])
def test_a_layer_without_its_config_is_named_as_a_module(tmp_path, there):
    if there:
        (tmp_path / "2_Dense").mkdir()
    with pytest.raises(CheckpointError) as caught:
        read_dense(tmp_path / "2_Dense", 32)
    folder = tmp_path / "2_Dense"
    assert str(caught.value) == (
        f"{folder} holds no config.json: the model's module 2_Dense is missing or not "
        "whole"
    )
