"""BERT as a NomicBERT start, and a dense model as a mixture of experts."""

import dataclasses

import numpy as np
import pytest
import tiny_checkpoints as tiny
from tiny_checkpoints import ours

from nomic_jax.batch import Tokens
from nomic_jax.checkpoints.model_folder import build
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.upcycling import nomic_start, upcycled
from nomic_jax.checkpoints.writer import write_checkpoint


def arrays(checkpoint):
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "pretraining"), ("xlm-roberta", "mlm"), ("bert", "pooler")],
)
def test_bert_becomes_a_nomicbert_of_a_padded_vocabulary(tmp_path, family, head):
    config = dataclasses.replace(tiny.configured(family, head), vocab_size=100)
    source = read_checkpoint(ours(tmp_path / "ours", config))
    start = nomic_start(source, rope_base=10000.0, trained_positions=256)
    masked = head != "pooler"
    assert start.config == dataclasses.replace(
        config,
        vocab_size=128,
        rope_base=10000.0,
        trained_positions=256,
        first_position=0,
        head="mlm" if masked else None,
        head_bias=masked,
    )
    write_checkpoint(start, tmp_path / "nomic", layout="nomic")
    written = read_checkpoint(tmp_path / "nomic")
    assert written.config == start.config
    got, before = arrays(written), arrays(source)
    table = got.pop("encoder.word_embedding.embedding")
    words = before["encoder.word_embedding.embedding"]
    np.testing.assert_array_equal(table[:100], words)
    assert not table[100:].any()
    if masked:
        bias = got.pop("head.bias")
        np.testing.assert_array_equal(bias[:100], before["head.bias"])
        np.testing.assert_array_equal(bias[100:], -100)
        stored = tiny.load(tmp_path / "nomic")["cls.predictions.decoder.weight"]
        np.testing.assert_array_equal(stored, table)
    tiny.assert_bitwise(got, {name: before[name] for name in got})
    left = {name.split(".")[0] for name in before.keys() - got.keys()}
    assert left <= {"encoder", "head", "pooler", "next_sentence"}
    assert "encoder.position_embedding.embedding" not in got


def test_only_absolute_positions_give_way_to_rotary_ones(tmp_path):
    source = read_checkpoint(ours(tmp_path / "ours", tiny.FAMILIES["nomic"]))
    with pytest.raises(CheckpointError, match="made of a BERT or an XLM-R"):
        nomic_start(source, rope_base=1000.0, trained_positions=64)


@pytest.mark.parametrize("keep_biases", [True, False])
def test_experts_are_copies_and_biases_are_kept_or_dropped(tmp_path, keep_biases):
    config = tiny.configured("nomic-xlm", "mlm")
    source = read_checkpoint(ours(tmp_path / "ours", config))
    made = upcycled(source, num_experts=4, keep_biases=keep_biases, seed=3)
    layout = "jax" if keep_biases else "nomic"
    if keep_biases:
        with pytest.raises(CheckpointError, match="keep_biases=False"):
            write_checkpoint(made, tmp_path / "nomic", layout="nomic")
    write_checkpoint(made, tmp_path / layout, layout=layout)
    written = read_checkpoint(tmp_path / layout)
    assert written.config == dataclasses.replace(
        config, num_experts=4, experts_per_token=2, expert_bias=keep_biases
    )
    got, before = arrays(written), arrays(source)
    dense, sparse = "encoder.blocks.dense", "encoder.blocks.sparse"
    for name, array in before.items():
        if not name.startswith("encoder.blocks."):
            np.testing.assert_array_equal(got[name], array)
            continue
        kind = name.removeprefix("encoder.blocks.")
        np.testing.assert_array_equal(got[f"{dense}.{kind}"], array[::2])
        if not kind.startswith("mlp."):
            np.testing.assert_array_equal(got[f"{sparse}.{kind}"], array[1::2])
    copies = {"up": "up.kernel", "down": "down.kernel"}
    if keep_biases:
        copies["up_bias"] = "up.bias"
    for name, kind in copies.items():
        experts = got[f"{sparse}.mlp.experts.{name}"]
        assert experts.shape[1] == 4
        for expert in range(4):
            layers = before[f"encoder.blocks.mlp.{kind}"][1::2]
            np.testing.assert_array_equal(experts[:, expert], layers)
    shared = before["encoder.blocks.mlp.down.bias"][1::2]
    bias = got[f"{sparse}.mlp.experts.bias"]
    np.testing.assert_array_equal(bias, shared if keep_biases else 0 * shared)
    assert (f"{sparse}.mlp.experts.up_bias" in got) is keep_biases


def test_routers_come_from_the_seed_with_the_configs_deviation(tmp_path):
    config = dataclasses.replace(tiny.FAMILIES["nomic-xlm"], initializer_range=0.5)
    source = read_checkpoint(ours(tmp_path / "ours", config))
    name = "encoder.blocks.sparse.mlp.router.kernel"
    first, again, other = (
        upcycled(source, num_experts=64, seed=seed).tensors[name].read()
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    # 2,048 draws: the sample's deviation is within 5 % (3 standard errors).
    assert abs(first.std() / 0.5 - 1) < 0.05


@pytest.mark.slow
def test_one_expert_of_one_computes_what_the_dense_model_did(tmp_path):
    # The router's weight is then 1: nothing but the copying is left to differ.
    config = tiny.FAMILIES["nomic-xlm"]
    source = read_checkpoint(ours(tmp_path / "ours", config))
    mixture = upcycled(source, num_experts=1, experts_per_token=1, seed=0)
    ids = np.random.default_rng(0).integers(5, tiny.VOCABULARY, (2, 9)).astype(np.int32)
    tokens = Tokens(ids, np.ones_like(ids))
    # float32 sums of 64 products in another order.
    np.testing.assert_allclose(build(mixture)(tokens), build(source)(tokens), atol=2e-5)


@pytest.mark.parametrize("family", ["moe", "bert", "modernbert"])
def test_only_a_dense_nomicbert_is_upcycled(tmp_path, family):
    source = read_checkpoint(ours(tmp_path / "ours", tiny.FAMILIES[family]))
    with pytest.raises(CheckpointError, match="a dense NomicBERT can be upcycled"):
        upcycled(source, num_experts=4, seed=0)


def test_a_gated_mlp_is_no_expert(tmp_path):
    source = read_checkpoint(ours(tmp_path / "ours", tiny.FAMILIES["nomic"]))
    with pytest.raises(ValueError, match="with gelu and biases"):
        upcycled(source, num_experts=4, seed=0)
