"""Folders that embed as they should pass; a small change of a weight does not."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoints as tiny
from flax import nnx

from nomic_jax.checkpoints.conversion import main as convert
from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.cli.main import nomic_jax
from nomic_jax.config import PUBLISHED, EmbeddingConfig, padded_vocabulary
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.inference.embedder import Embedder
from nomic_jax.inference.verify import (
    FINGERPRINT,
    TEXTS,
    compare,
    in_float32,
    write_fingerprint,
)
from nomic_jax.model import pooling
from nomic_jax.model.attention import layer
from nomic_jax.model.encoder import NomicBert


def embedding(**changes):
    values = {"pooling": "mean", "layer_norm": False, "max_length": 48}
    return EmbeddingConfig(**(values | changes))


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train(list(TEXTS) * 2, vocab_size=128)


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(
        tiny_config, trained_positions=48, rope_scaling_factor=None
    )


@pytest.fixture(scope="module")
def model(config):
    return NomicBert(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, config, tokenizer):
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(model, config, embedding(), tokenizer, folder)
    write_fingerprint(Embedder(model, tokenizer, embedding()), folder)
    return folder


@pytest.fixture
def without_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch" else find(name, *rest),
    )


def verify(folder, capsys):
    """The exit status, standard output, and the last line of standard error."""
    capsys.readouterr()
    status = nomic_jax(["verify", str(folder)])
    said = capsys.readouterr()
    return status, said.out, (said.err.splitlines() or [""])[-1]


def scale(folder, name, row, by):
    arrays = tiny.load(folder)
    (found,) = (key for key in arrays if key.endswith(name))
    arrays[found][0].reshape(-1, arrays[found].shape[-1])[row] *= by
    tiny.save_file(arrays, folder / "model.safetensors")


def test_an_exported_folder_has_its_own_fingerprint(exported, capsys, without_torch):
    status, out, last = verify(exported, capsys)
    assert status == 0
    assert out.startswith("ok   against fingerprint.json: largest difference 0.0e+00")
    assert last.startswith("not compared with PyTorch: PyTorch is not installed")


@pytest.mark.parametrize(
    "name", ["attention.qkv.kernel", "attention.out.kernel", "mlp.gate.kernel"]
)
def test_a_weight_changed_by_little_is_found(
    exported, tmp_path, capsys, without_torch, name
):
    changed = tmp_path / "model"
    shutil.copytree(exported, changed)
    scale(changed, name, row=3, by=1.01)
    status, out, _ = verify(changed, capsys)
    assert status == 1
    assert out.startswith("FAIL against fingerprint.json: largest difference ")


def test_a_fingerprint_is_float32_whatever_the_model_runs_in(
    exported, tmp_path, config, tokenizer
):
    rough = NomicBert(config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    embedder = Embedder(rough, tokenizer, embedding())
    assert in_float32(embedder).model.dtype == "float32"
    write_fingerprint(embedder, tmp_path)
    # The weights of one seed are the same, so the vectors are, bit for bit.
    ours, other = (
        json.loads((folder / FINGERPRINT).read_text())
        for folder in (tmp_path, exported)
    )
    assert ours == other
    assert ours["texts"] == list(TEXTS)


@pytest.mark.parametrize("content", ["{", "[]", '{"task": "clustering"}'])
def test_a_broken_fingerprint_is_named(
    exported, tmp_path, capsys, without_torch, content
):
    broken = tmp_path / "model"
    shutil.copytree(exported, broken)
    (broken / FINGERPRINT).write_text(content)
    status, out, last = verify(broken, capsys)
    assert (status, out) == (2, "")
    assert last.startswith(f"error: {broken / FINGERPRINT} is not a fingerprint")


def test_without_fingerprint_and_torch_there_is_nothing_to_compare(
    exported, tmp_path, capsys, without_torch
):
    bare = tmp_path / "model"
    shutil.copytree(exported, bare, ignore=shutil.ignore_patterns(FINGERPRINT))
    status, out, last = verify(bare, capsys)
    assert (status, out) == (2, "")
    assert last.startswith(f"error: nothing to compare {bare} with")
    assert "nomic-jax[torch]" in last


def test_embeddings_of_another_width_are_no_match():
    with pytest.raises(ValueError, match=r"\(2, 4\) here and \(2, 8\) in a file"):
        compare(np.ones((2, 4)), np.ones((2, 8)), against="a file")


def test_a_folder_that_is_none_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, says in (("empty", "config.json"), ("no", "not a folder")):
        status, out, last = verify(tmp_path / name, capsys)
        assert (status, out) == (2, "")
        assert last.startswith("error: ") and says in last


def published(folder, layout, config):
    """A tiny published folder whose own files say how it embeds."""
    arrays = tiny.tensors()
    for name, array in arrays.items():  # attention far from uniform, norms near 1
        array *= 4 if "Wqkv" in name else 1
        array += name.endswith(("ln.weight", "norm1.weight", "norm2.weight"))
    written = tiny.NATIVE_CONFIG if layout == "transformers" else tiny.NOMIC_CONFIG
    tiny.folder(folder, arrays, written)
    (folder / "embedding.json").write_text(json.dumps(config.to_json()))
    return folder


CONVENTIONS = [
    embedding(),
    embedding(layer_norm=True),
    embedding(pooling="cls"),
    embedding(pooling="last"),
]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "layout"),
    [*zip(CONVENTIONS, ["nomic", "transformers"] * 2, strict=True)],
    ids=lambda c: c if isinstance(c, str) else f"{c.pooling}-{c.layer_norm}",
)
def test_published_folders_embed_as_with_torch(
    tmp_path, capsys, tokenizer, layout, config
):
    folder = published(tmp_path / "model", layout, config)
    tokenizer.save(folder)
    status, out, _ = verify(folder, capsys)
    assert status == 0, out
    assert out.startswith("ok   against transformers on PyTorch")


@pytest.mark.torch
def test_an_exported_folder_embeds_as_with_torch(exported, capsys):
    status, out, _ = verify(exported, capsys)
    assert status == 0
    assert [line[:4].strip() for line in out.splitlines()] == ["ok", "ok"]


def family(name, tokenizer, folder):
    """A tiny model of a family with random weights, exported with its fingerprint."""
    config = dataclasses.replace(
        PUBLISHED[name],
        **{"num_layers": 4, "width": 32, "num_heads": 2, "mlp_width": 64},
        vocab_size=padded_vocabulary(tokenizer.size),
        trained_positions=64,
        pad_token_id=0,  # the tokenizer's
        first_position=int(PUBLISHED[name].first_position > 0),  # the one after it
        **{"head": None, "head_bias": False},
    )
    model = NomicBert(config, rngs=nnx.Rngs(0))
    conventions = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=32)
    save_model(model, config, conventions, tokenizer, folder)
    write_fingerprint(Embedder(model, tokenizer, conventions), folder)


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["bert-base-uncased", "xlm-roberta-base", "modernbert-embed-base"]
)
def test_other_families_embed_as_with_torch(tmp_path, capsys, tokenizer, name):
    family(name, tokenizer, tmp_path / "model")
    status, out, _ = verify(tmp_path / "model", capsys)
    assert status == 0
    assert [line[:4].strip() for line in out.splitlines()] == ["ok", "ok"]


@pytest.mark.slow
def test_a_mixture_has_its_fingerprint_alone(tmp_path, capsys, tokenizer):
    family("nomic-embed-text-v2-moe", tokenizer, tmp_path / "model")
    status, out, last = verify(tmp_path / "model", capsys)
    assert status == 0
    assert out.startswith("ok   against fingerprint.json")
    assert "transformers' has no mixture of experts" in last

    place = tmp_path / "converted"
    arguments = [str(tmp_path / "model"), str(place), "--to", "sentence-transformers"]
    assert convert(arguments) == 0
    capsys.readouterr()
    status, out, _ = verify(place, capsys)
    # Read from another layout, it has lengths and prompts of its own, not other values.
    assert (status, out[:31]) == (0, "ok   against fingerprint.json: ")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (pooling, "plain_layer_norm", lambda x: x),
        (layer, "rotate", lambda x, cos, sin: x),
    ],
)
def test_a_defect_of_ours_fails_against_torch(
    tmp_path, capsys, monkeypatch, tokenizer, place, name, wrong
):
    folder = published(tmp_path / "model", "nomic", embedding(layer_norm=True))
    tokenizer.save(folder)
    jax.clear_caches()
    monkeypatch.setattr(place, name, wrong)
    status, out, _ = verify(folder, capsys)
    jax.clear_caches()
    assert status == 1
    assert out.startswith("FAIL against transformers on PyTorch")
