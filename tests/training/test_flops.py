import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from nomic_jax.batch import MlmBatch, PackedTexts, PairBatch, Tokens
from nomic_jax.config import PUBLISHED
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.flops import (
    attended,
    device_memory,
    flops_per_token,
    forward_flops,
    peak_flops,
    text_lengths,
)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("cpu", None),
        ("TPU v4i", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_has_its_makers_peak_or_none(kind, expected):
    assert peak_flops(kind) == expected


def test_a_parameter_of_a_layer_costs_two_flops_a_token():
    config = PUBLISHED["nomic-embed-text-v1"]
    model = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0)))
    matrices = [leaf.size for leaf in jax.tree.leaves(model.blocks) if leaf.ndim >= 3]
    assert sum(matrices) == 12 * (4 * 768**2 + 3 * 768 * 3072)
    # And the token's look at itself: two products of 768 numbers a layer.
    looks = 12 * 2 * 768 * 2
    assert forward_flops(config, np.array([1])) == 2 * sum(matrices) + looks


def test_attention_grows_with_the_length_and_the_head_with_masked_positions():
    config = PUBLISHED["nomic-bert-2048"]
    base, whole = (
        forward_flops(config, np.full(texts, 100 // texts)) for texts in (100, 1)
    )
    # Scores and their weighted sum: two products of 768 numbers a pair and layer.
    assert whole - base == 12 * (100 * 100 - 100) * 2 * 768 * 2
    head = forward_flops(config, np.array([100]), masked=30) - whole
    assert head == 30 * (2 * 768 * 768 + 2 * 768 * 30528)


def test_a_token_meets_the_experts_that_it_goes_to_and_the_router():
    dense = PUBLISHED["nomic-xlm-2048"]
    experts = PUBLISHED["nomic-embed-text-v2-moe"]
    lengths = np.array([7])
    more = forward_flops(experts, lengths) - forward_flops(dense, lengths)
    # In six of the layers a second MLP, and a product with eight columns.
    assert more == 7 * 6 * (2 * 2 * 768 * 3072 + 2 * 768 * 8)
    # The active parameters that the model card counts, but for the word table, norms
    # and biases: two FLOPs each.
    active = 12 * (4 * 768**2 + 2 * 768 * 3072) + 6 * (2 * 768 * 3072 + 768 * 8)
    assert forward_flops(experts, np.array([1])) == 2 * active + 12 * 2 * 768 * 2


@pytest.mark.parametrize("length", [0, 1, 3, 5, 6, 20])
def test_local_layers_look_at_their_window_alone(length):
    near = np.abs(np.arange(length)[:, None] - np.arange(length)[None]) <= 4
    assert attended(np.array([length, 2]), 4) == near.sum() + 4
    assert attended(np.array([length, 2]), None) == length**2 + 4
    config = PUBLISHED["ModernBERT-base"]
    long = forward_flops(config, np.array([1000])) - forward_flops(
        dataclasses.replace(
            config, local_window=None, local_rope_base=None, global_every=1
        ),
        np.array([1000]),
    )
    seen = attended(np.array([1000]), 64) - 1000**2
    assert long == 14 * 4 * 768 * seen  # layers 1, 2, 4, 5... of 22


@pytest.mark.slow
def test_the_compiler_counts_the_same_matrix_products(tiny_config):
    # One layer, no scan trip count to lose; no attention and no elementwise work in
    # the formula's way: widths that make the matrices dominate.
    config = dataclasses.replace(
        tiny_config, num_layers=1, width=256, mlp_width=1024, num_heads=4
    )
    model = NomicBert(config, rngs=nnx.Rngs(0))
    tokens = Tokens(np.ones((4, 16), np.int32), np.ones((4, 16), np.int32))
    compiled = jax.jit(lambda model, tokens: model(tokens)).lower(model, tokens)
    counted = compiled.compile().cost_analysis()["flops"]
    ours = forward_flops(config, np.full(4, 16))
    # Norms, rotations, softmax and activations are what the formula leaves out.
    assert ours <= counted <= 1.05 * ours


def test_text_lengths_are_runs_of_segments():
    rows = np.array([[1, 1, 2, 0], [0, 0, 0, 0], [1, 1, 1, 1], [3, 2, 2, 0]])
    assert text_lengths(rows).tolist() == [2, 1, 4, 1, 2]


def test_batches_cost_what_their_own_texts_cost(tiny_config):
    rows = np.array([[1, 1, 1, 2], [1, 1, 0, 0]], np.int32)
    weights = np.array([[True, True], [True, False]])
    masked = MlmBatch(Tokens(rows, rows), weights * 1, weights * 1, weights)
    expected = forward_flops(tiny_config, np.array([3, 1, 2]), masked=3)
    assert flops_per_token(tiny_config, masked) == 3 * expected / 6
    lengths = np.array([[3, 1], [2, 0]], np.int32)
    pairs = PairBatch(
        PackedTexts(Tokens(rows, rows), lengths),
        slots=np.arange(4).reshape(1, 4),
        query_places=np.array([0]),
        document_places=np.array([1]),
        document_ids=np.zeros((1, 4, 2), np.int32),
    )
    expected = forward_flops(tiny_config, np.array([3, 1, 2]))
    assert flops_per_token(tiny_config, pairs) == 3 * expected / 6


def test_the_fullest_device_tells_its_memory(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            if self.peak is None:  # as a CPU answers
                return None
            return {"peak_bytes_in_use": self.peak * 2**30, "bytes_limit": 8 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(2), Device(3)])
    assert device_memory() == {"memory": 3.0, "memory_limit": 8.0}
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    assert device_memory() == {}
