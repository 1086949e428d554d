import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from nomic_jax.model import grouped_matmul
from nomic_jax.model.moe import MixtureOfExperts

FORMS = ("grouped", "dense")


def make_layer(config, experts=4, chosen=2, dtype="float32", **changes):
    config = dataclasses.replace(
        config,
        activation="gelu",
        bias=True,
        num_experts=experts,
        experts_per_token=chosen,
        **changes,
    )
    return MixtureOfExperts(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))


def put(layer, *, router, up, down, bias):
    layer.router.kernel.set_value(jnp.asarray(router, jnp.float32))
    layer.experts.up.set_value(jnp.asarray(up, jnp.float32))
    layer.experts.down.set_value(jnp.asarray(down, jnp.float32))
    layer.experts.bias.set_value(jnp.asarray(bias, jnp.float32))
    return layer


@functools.partial(jax.jit, static_argnames="form")
def apply(layer, x, counted=None, form="grouped"):
    return layer(x, counted, product=form)


@functools.partial(jax.jit, static_argnames="form")
def gradients(layer, x, upstream, counted=None, form="grouped"):
    def scalar(layer, x):
        out, sums = layer(x, counted, product=form)
        return (out.astype(jnp.float32) * upstream).sum(), sums

    (_, sums), found = jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)(
        layer, x
    )
    return found, sums


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def by_hand(tiny_config):
    """Three experts of width 2 and 2, whose inputs to GELU are far above 0.

    The routed probabilities of [1, 0] are 5, 3 and 2 tenths; for [0, 1] all are equal.
    GELU(10) is 10 but for 10^-22.
    """
    return put(
        make_layer(tiny_config, experts=3),
        router=[np.log([5, 3, 2]), [0, 0, 0]],
        up=[
            [[10, 20], [10, 10]],
            [[30, 10], [20, 20]],
            [[90, 90], [90, 90]],
        ],
        down=[
            [[1, 2], [3, 4]],
            [[1, 0], [2, 1]],
            [[9, 9], [9, 9]],
        ],
        bias=[1, -3],
    )


@pytest.mark.parametrize("form", FORMS)
def test_two_experts_weights_and_one_bias_as_computed_by_hand(by_hand, form):
    out, _ = apply(by_hand, jnp.array([[1.0, 0.0]]), form=form)
    # Expert 0: [10, 20] @ [[1, 2], [3, 4]] = [10 + 60, 20 + 80] = [70, 100]
    #           (transposed it would be [10 + 40, 30 + 80])
    # Expert 1: [30, 10] @ [[1, 0], [2, 1]] = [30 + 20, 0 + 10] = [50, 10]
    # 0.5 [70, 100] + 0.3 [50, 10] + [1, -3] = [35 + 15 + 1, 50 + 3 - 3] = [51, 50];
    # weights that sum to 1 would give [63.5, 63.25].
    np.testing.assert_allclose(out, [[51, 50]], rtol=1e-6)  # a few float32 ulp


@pytest.mark.parametrize("form", FORMS)
def test_of_equally_probable_experts_the_first_are_chosen(by_hand, form):
    out, _ = apply(by_hand, jnp.array([[0.0, 1.0]]), form=form)
    # Experts 0 and 1, a third each: [10, 10] @ [[1, 2], [3, 4]] = [40, 60] and
    # [20, 20] @ [[1, 0], [2, 1]] = [60, 20]; [100, 80] / 3 + [1, -3].
    np.testing.assert_allclose(out, [[103 / 3, 71 / 3]], rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_equal_pytorch_on_the_published_layout(tiny_config, form):
    import torch
    from torch.nn import functional

    experts, inner, width, tokens = 8, tiny_config.mlp_width, tiny_config.width, 48
    published = {
        "mlp.router.layer.weight": normal(0, experts, width) * 0.3,
        "mlp.experts.mlp.w1": normal(1, experts * inner, width) * 0.2,
        "mlp.experts.mlp.w2": normal(2, experts * inner, width) * 0.2,
        "mlp.experts.bias": normal(3, width),
    }
    x, upstream = normal(4, tokens, width), normal(5, tokens, width)

    tensors = {name: torch.tensor(a).requires_grad_() for name, a in published.items()}
    input_tensor = torch.tensor(x).requires_grad_()
    router, w1, w2, shared = tensors.values()
    probabilities = functional.linear(input_tensor, router).softmax(dim=-1)
    weights, best = probabilities.topk(2, dim=-1)
    outputs = []
    for token, row in enumerate(input_tensor):
        total = shared
        for weight, expert in zip(weights[token], best[token].tolist(), strict=True):
            own = slice(expert * inner, (expert + 1) * inner)
            hidden = functional.gelu(w1[own] @ row)
            total = total + weight * (hidden @ w2[own])
        outputs.append(total)
    expected = torch.stack(outputs)
    (expected * torch.tensor(upstream)).sum().backward()

    layer = put(
        make_layer(tiny_config, experts),
        router=published["mlp.router.layer.weight"].T,
        up=published["mlp.experts.mlp.w1"]
        .reshape(experts, inner, width)
        .swapaxes(1, 2),
        down=published["mlp.experts.mlp.w2"].reshape(experts, inner, width),
        bias=published["mlp.experts.bias"],
    )
    np.testing.assert_array_equal(
        layer.router(jnp.asarray(x)).experts, best.detach().numpy()
    )
    np.testing.assert_allclose(
        apply(layer, jnp.asarray(x), form=form)[0],
        expected.detach().numpy(),
        atol=5e-5,
    )

    (ours, ours_x), _ = gradients(layer, jnp.asarray(x), upstream, form=form)
    found = {
        "mlp.router.layer.weight": ours.router.kernel[...].T,
        "mlp.experts.mlp.w1": ours.experts.up[...]
        .swapaxes(1, 2)
        .reshape(experts * inner, width),
        "mlp.experts.mlp.w2": ours.experts.down[...].reshape(experts * inner, width),
        "mlp.experts.bias": ours.experts.bias[...],
        "x": ours_x,
    }
    for name, tensor in {**tensors, "x": input_tensor}.items():
        assert tensor.grad is not None
        theirs = tensor.grad.numpy()
        # float32 sums of up to a hundred terms, in another order.
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(found[name], theirs, atol=1e-4 * scale, err_msg=name)


@pytest.mark.slow
def test_both_forms_agree_where_an_expert_gets_no_token(tiny_config):
    layer = make_layer(tiny_config)
    router = normal(0, tiny_config.width, 4)
    x = np.abs(normal(1, 2, 100, tiny_config.width))
    router[:, 1] = -1  # x is positive: expert 1 is the least probable of any token
    layer.router.kernel.set_value(jnp.asarray(router))
    upstream, counted = normal(2, *x.shape), np.arange(100)[None] < [[100], [30]]
    found = {
        form: (
            apply(layer, jnp.asarray(x), jnp.asarray(counted), form)[0],
            *gradients(layer, jnp.asarray(x), upstream, jnp.asarray(counted), form),
        )
        for form in FORMS
    }
    ours, oracle = found["grouped"], found["dense"]
    assert oracle[2].chosen[1] == 0
    assert not np.any(ours[1][0].experts.up[...][1])
    assert np.any(ours[1][0].router.kernel[...])
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        # float32 sums of 200 terms in two orders, against the array's largest.
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_tokens_are_computed_each_by_itself(tiny_config):
    layer = make_layer(tiny_config)
    x = normal(0, 12, tiny_config.width)
    order = np.random.default_rng(1).permutation(12)
    out, sums = apply(layer, jnp.asarray(x))
    permuted, same = apply(layer, jnp.asarray(x[order]))
    # Sums of 64 terms, blocked otherwise.
    np.testing.assert_allclose(permuted, out[order], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, same)


def test_padding_changes_neither_tokens_nor_sums(tiny_config):
    layer = make_layer(tiny_config)
    x = normal(0, 3, 6, tiny_config.width)
    counted = np.arange(6)[None] < [[6], [4], [1]]
    other = np.where(counted[..., None], x, normal(1, *x.shape))
    out, sums = apply(layer, jnp.asarray(x), jnp.asarray(counted))
    changed, same = apply(layer, jnp.asarray(other), jnp.asarray(counted))
    np.testing.assert_allclose(out[counted], changed[counted], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, same)
    assert sums.tokens == 11 and sums.chosen.sum() == 22


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_it_stays_near_float32(tiny_config, form):
    x = jnp.asarray(normal(0, 40, tiny_config.width)).astype(jnp.bfloat16)
    out, _ = apply(make_layer(tiny_config, dtype="bfloat16"), x, form=form)
    exact, _ = apply(make_layer(tiny_config), x.astype(jnp.float32), form=form)
    assert out.dtype == jnp.bfloat16
    found, _ = gradients(make_layer(tiny_config, dtype="bfloat16"), x, 1.0, None, form)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    # Two products of 8 mantissa bits: a few of 2^-8 of the largest.
    limit = 4 * 2**-8 * float(jnp.abs(exact).max())
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=limit)


def test_no_form_makes_an_array_of_every_token_expert_and_inner_width(tiny_config):
    layer, x = make_layer(tiny_config), jnp.ones((500, tiny_config.width))
    everything = 500 * 4 * tiny_config.mlp_width

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (np.prod(out.aval.shape) for out in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    for form in FORMS:
        program = jax.make_jaxpr(
            lambda layer, x, form=form: gradients(layer, x, 1.0, None, form)
        )(layer, x)
        assert max(sizes(program.jaxpr)) < everything


def test_a_gpu_without_tokamax_works_in_blocks_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(sys.modules, "tokamax", None)
    grouped_matmul._gpu_kernel.cache_clear()
    rows, sizes = normal(0, 1500, 8), jnp.array([1200, 0, 300], jnp.int32)
    matrices = normal(1, 3, 8, 6)
    kernel = grouped_matmul._gpu_kernel()
    assert "in blocks of 1024 rows; tokamax" in caplog.text
    expected = np.concatenate([rows[:1200] @ matrices[0], rows[1200:] @ matrices[2]])
    # Sums of 8 products near 1, in float32.
    got = kernel.multiply(jnp.asarray(rows), jnp.asarray(matrices), sizes)
    np.testing.assert_allclose(got, expected, atol=5e-6)


def test_a_token_cannot_go_to_more_experts_than_there_are(tiny_config):
    with pytest.raises(ValueError, match="experts_per_token=5 .* num_experts=4"):
        make_layer(tiny_config, experts=4, chosen=5)
