"""What holds of attention whichever backend computes it, and how one is chosen."""

import dataclasses
import functools
import importlib.util
import re

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import exact_attention, random_heads, values_and_gradients
from flax import nnx

from nomic_jax.batch import Tokens
from nomic_jax.model.attention import blockwise, splash, tokamax
from nomic_jax.model.attention.backends import (
    AttentionSpec,
    Setting,
    choose,
    describe_backend,
    unsupported_reason,
)
from nomic_jax.model.attention.layer import attend
from nomic_jax.model.encoder import NomicBert

HAS_TOKAMAX = importlib.util.find_spec("tokamax") is not None


def named(backend, **setting):
    return functools.partial(attend, setting=Setting(backend=backend, **setting))


@pytest.fixture(
    params=[
        "blockwise",
        "splash",
        # Its kernels need a GPU; what they are told of each text is shown without.
        pytest.param(
            "tokamax",
            marks=pytest.mark.skipif(not HAS_TOKAMAX, reason="tokamax is not here"),
        ),
        pytest.param("tokamax on a GPU", marks=pytest.mark.gpu),
        pytest.param("cudnn on a GPU", marks=pytest.mark.gpu),
    ]
)
def backend(request):
    """A function of q, k, v, segments and window for each backend."""
    return {
        "blockwise": blockwise.attend,
        "splash": functools.partial(splash.attend, interpret=True),
        "tokamax": functools.partial(tokamax.attend, kernels=("xla",)),
        "tokamax on a GPU": named("tokamax"),
        "cudnn on a GPU": named("cudnn", texts=3),
    }[request.param]


# What each can be asked for, of lengths that tiles and blocks divide and do not; the
# kernels for GPUs take neither float32, nor is there a window in cuDNN.
CASES = [
    (40, None, 64, "float32"),
    (512, None, 64, "float32"),
    (512, None, 64, "bfloat16"),
    (700, None, 16, "float32"),
    (700, None, 16, "bfloat16"),
    (40, 3, 64, "float32"),
    (512, 64, 32, "float32"),
    (512, 64, 32, "bfloat16"),
    (700, 130, 64, "float32"),
    (700, 130, 64, "bfloat16"),
]


def able(request, window, dtype):
    name = request.node.callspec.params["backend"]
    if name.endswith("GPU") and dtype == "float32":
        pytest.skip("multiplies halves alone, and says so")
    if name.startswith("cudnn") and window is not None:
        pytest.skip("has no window, and says so")


@pytest.mark.slow
@pytest.mark.parametrize(("length", "window", "width", "dtype"), CASES)
def test_it_is_attention_by_definition(backend, length, window, width, dtype, request):
    able(request, window, dtype)
    heads = random_heads(length, width=width, dtype=dtype)
    *qkv, segments = heads
    held = (np.asarray(segments) > 0)[..., None, None]
    direction = held * np.random.default_rng(1).normal(size=qkv[0].shape)

    found = values_and_gradients(
        lambda *qkv: backend(*qkv, segments, window), *qkv, jnp.asarray(direction)
    )
    exact = values_and_gradients(
        lambda *qkv: exact_attention(*qkv, segments, window),
        *(x.astype(jnp.float32) for x in qkv),
        jnp.asarray(direction),
    )
    for got, expected in zip(found, exact, strict=True):
        assert np.isfinite(got).all()  # at padding too
        error = (got - expected) * held
        if dtype == "float32":
            # Sums of up to 700 terms of unit scale.
            np.testing.assert_allclose(error, 0, atol=1e-5)
        else:
            # Inputs, weights and results are rounded to 8 bits, half a unit of which is
            # 0.2 %; a few such roundings add up.
            assert np.linalg.norm(error) < 0.01 * np.linalg.norm(expected * held)


@pytest.mark.slow
@pytest.mark.parametrize("length", [200, 513])
def test_packed_texts_come_out_as_alone_and_so_do_their_gradients(
    backend, length, request
):
    dtype = "bfloat16" if "GPU" in request.node.name else "float32"
    *qkv, _ = random_heads(length, rows=1, width=64, dtype=dtype)
    first = length // 3
    segments = np.where(np.arange(length) < first, 1, 2)[None].astype(np.int32)
    segments[:, -7:] = 0
    direction = np.random.default_rng(1).normal(size=qkv[0].shape)
    direction[:, -7:] = 0
    together = values_and_gradients(
        lambda *qkv: backend(*qkv, jnp.asarray(segments)), *qkv, jnp.asarray(direction)
    )
    for start, end in ((0, first), (first, length - 7)):
        ones = jnp.ones((1, end - start), jnp.int32)
        alone = values_and_gradients(
            lambda *qkv, ones=ones: backend(*qkv, ones),
            *(x[:, start:end] for x in qkv),
            jnp.asarray(direction[:, start:end]),
        )
        # Terms are added in another order: that of tiles, which begin elsewhere.
        tolerance = 2e-2 if dtype == "bfloat16" else 5e-6
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(got[:, start:end], expected, atol=tolerance)


ON_TPU = AttentionSpec(platform="tpu", dtype="bfloat16", head_width=64, length=2048)
ON_GPU = dataclasses.replace(ON_TPU, platform="gpu", capability=(9, 0))
ON_CPU = dataclasses.replace(ON_TPU, platform="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("case", "changes", "chosen"),
    [
        (ON_CPU, {}, "blockwise"),
        (ON_TPU, {}, "splash"),
        (ON_TPU, {"window": 64, "dtype": "float32", "devices": 4}, "splash"),
        (ON_TPU, {"length": 256}, "blockwise"),
        (ON_TPU, {"head_width": 512}, "blockwise"),
        (ON_GPU, {"texts": 1}, "cudnn"),
        (ON_GPU, {"texts": 1, "devices": 8}, "cudnn"),
        (ON_GPU, {"texts": 1, "dtype": "float32"}, "blockwise"),
        (ON_GPU, {"texts": 1, "capability": (7, 5)}, "blockwise"),
        (ON_GPU, {"texts": 1, "capability": None}, "blockwise"),
        (ON_GPU, {"texts": 16, "devices": 2}, "cudnn"),
        (ON_GPU, {"texts": 16, "capability": (8, 0), "devices": 2}, "blockwise"),
        (ON_GPU, {"texts": 256, "devices": 2}, "blockwise"),
        (ON_GPU, {"devices": 2}, "blockwise"),
        (ON_GPU, {"window": 64, "texts": 1, "devices": 2}, "blockwise"),
    ],
)
def test_auto_follows_the_rule(case, changes, chosen):
    assert choose("auto", dataclasses.replace(case, **changes)) == chosen


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [({"texts": 1}, "cudnn"), ({"texts": 16}, "tokamax"), ({"window": 64}, "tokamax")],
)
def test_auto_takes_tokamax_where_it_is(monkeypatch, changes, chosen):
    here = "nomic_jax.model.attention.tokamax.why_missing"
    monkeypatch.setattr(here, lambda: None)
    assert choose("auto", dataclasses.replace(ON_GPU, **changes)) == chosen


@pytest.mark.parametrize(
    ("backend", "case", "changes", "reason"),
    [
        ("splash", ON_CPU, {}, "runs on TPUs, .* of the kind cpu; take blockwise, or"),
        ("splash", ON_TPU, {"head_width": 512}, "heads up to 256 wide, not 512"),
        (
            "cudnn",
            ON_TPU,
            {},
            "kind tpu; take splash or blockwise, or auto",
        ),
        ("cudnn", ON_GPU, {"dtype": "float32"}, "bfloat16 and float16, not float32"),
        ("cudnn", ON_GPU, {"capability": (7, 5)}, "capability 8.0, this one has 7.5"),
        ("cudnn", ON_GPU, {"capability": None}, "needs NVIDIA's GPU here"),
        ("cudnn", ON_GPU, {"window": 64, "texts": 1}, "no window .* look 64 columns"),
        ("cudnn", ON_GPU, {"head_width": 20}, "a multiple of 8 up to 256, not 20"),
        ("cudnn", ON_GPU, {}, "how many texts a row holds"),
        ("cudnn", ON_GPU, {"texts": 4, "capability": (8, 9)}, "8.9, and .* 4 texts"),
        ("tokamax", ON_GPU, {"devices": 8}, "one device, and 8 compute"),
        ("tokamax", ON_CPU, {}, "runs on GPUs"),
    ],
)
def test_a_backend_that_cannot_is_refused_with_the_reason(
    backend, case, changes, reason
):
    case = dataclasses.replace(case, **changes)
    with pytest.raises(ValueError, match=f"attention='{backend}' .*{reason}"):
        choose(backend, case)


@pytest.mark.skipif(HAS_TOKAMAX, reason="tokamax is here")
def test_a_missing_tokamax_is_said():
    assert "ModuleNotFoundError: No module named 'tokamax'" in str(
        unsupported_reason("tokamax", ON_GPU)
    )


def test_one_line_says_which_rows_and_layers_a_backend_computes():
    lengths = (128, 256, 512, 1024)
    cases = [
        dataclasses.replace(ON_TPU, length=length, window=window)
        for window in (None, 64)
        for length in lengths
    ]
    assert describe_backend("auto", cases[:2]) == "blockwise"
    assert describe_backend("splash", cases) == "splash"
    assert describe_backend("auto", cases[:4]) == (
        "blockwise for rows of 128 to 256 columns, splash for rows of 512 to 1024 "
        "columns"
    )
    on_gpu = [
        dataclasses.replace(ON_GPU, window=window, texts=1, devices=2)
        for window in (None, 64)
    ]
    assert describe_backend("auto", on_gpu) == (
        "cudnn for rows of 2048 columns in layers without a window, blockwise for rows "
        "of 2048 columns in layers of window 64"
    )


def test_a_named_backend_reaches_every_layer(tiny_config):
    tokens = Tokens(*[np.ones((1, 8), np.int32)] * 2)
    model = NomicBert(tiny_config, rngs=nnx.Rngs(0))
    model.backend = "splash"
    said = re.escape("attention='splash' runs on TPUs")
    with pytest.raises(ValueError, match=said):
        model(tokens)
