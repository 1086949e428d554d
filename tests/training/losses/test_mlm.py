import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nomic_jax.batch import MlmBatch, Tokens
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.losses.mlm import masked_cross_entropy, mlm_cross_entropy
from nomic_jax.training.planning.hlo import read_program

VOCABULARY, WIDTH = 96, 24


def case(seed, *, count=40, bias=True, dtype=jnp.float32):
    """Hidden states, decoder, targets, and which count: none of the last ones."""
    rng = np.random.default_rng(seed)
    hidden = jnp.array(rng.normal(size=(count, WIDTH)), dtype)
    table = jnp.array(rng.normal(size=(VOCABULARY, WIDTH)), jnp.float32)
    bias = jnp.array(rng.normal(size=VOCABULARY), jnp.float32) if bias else None
    targets = jnp.array(rng.integers(VOCABULARY, size=count), jnp.int32)
    weights = jnp.array(rng.random(count) < 0.6) & (jnp.arange(count) < count - 12)
    return (hidden, table, bias), targets, weights


def at_once(decoded, targets, weights):
    """The same sum from all logits."""
    hidden, table, bias = decoded
    logits = jnp.matmul(
        hidden, table.T.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    logits = logits if bias is None else logits + bias[None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(jnp.where(weights, losses, 0))


@pytest.mark.parametrize(
    ("block", "bias"),
    [(7, False), (16, True), (40, True), (512, False)],  # a bias is added in each block
)
def test_blocks_have_the_value_and_the_gradients_of_all_logits(block, bias):
    decoded, targets, weights = case(block, bias=bias)

    def in_blocks(decoded):
        return mlm_cross_entropy(*decoded, targets, weights, block=block)[0]

    # A factor that is not 1: the gradient is made before it is known.
    def scaled(function):
        return jax.jit(jax.value_and_grad(lambda decoded: 0.3 * function(decoded)))

    value, gradients = scaled(in_blocks)(decoded)
    expected, wanted = scaled(lambda d: at_once(d, targets, weights))(decoded)
    # float32 sums of 96 exponentials and of at most 28 rows, in another order.
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for got, right in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(got, right, atol=2e-6)
    assert not np.asarray(gradients[0])[~np.asarray(weights)].any()
    # Without a gradient the value is summed by itself.
    assert float(jax.jit(in_blocks)(decoded)) == pytest.approx(float(expected / 0.3))


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 512])
def test_bfloat16_differs_from_float32_by_its_rounding(block):
    decoded, targets, weights = case(1, dtype=jnp.bfloat16)
    exact = jax.tree.map(lambda array: array.astype(jnp.float32), decoded)
    exact = exact[0], decoded[1].astype(jnp.bfloat16).astype(jnp.float32), exact[2]

    def in_blocks(decoded):
        return mlm_cross_entropy(*decoded, targets, weights, block=block)[0]

    value, got = jax.value_and_grad(in_blocks)(decoded)
    expected, wanted = jax.value_and_grad(in_blocks)(exact)
    assert [g.dtype for g in got] == [jnp.bfloat16, jnp.float32, jnp.float32]
    # The logits are float32 sums of the same products.
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for gradient, right in zip(got, wanted, strict=True):
        # The gradient of the logits is rounded to 8 bits, half a unit at most.
        limit = 2**-8 * float(jnp.abs(right).max())
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), right, atol=limit, rtol=2**-8
        )


@pytest.mark.optimized
def test_blocks_of_tokens_that_do_not_count_are_left_out():
    (hidden, *decoder), targets, weights = case(0)
    # Whatever is there has no part in anything, not even as no number.
    poisoned = hidden.at[-8:].set(jnp.nan)

    def in_blocks(hidden, block):
        return mlm_cross_entropy(hidden, *decoder, targets, weights, block=block)[0]

    value, gradient = jax.value_and_grad(in_blocks)(poisoned, 8)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(value, in_blocks(hidden, 8))


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_its_mean():
    decoded, targets, weights = case(2)
    total, count = mlm_cross_entropy(*decoded, targets, weights, block=16)
    hidden, *decoder = decoded
    parts = [
        mlm_cross_entropy(hidden[part], *decoder, targets[part], weights[part], block=8)
        for part in (slice(0, 5), slice(5, 17), slice(17, 40))
    ]
    added = [float(sum(each)) for each in zip(*parts, strict=True)]
    # Sums of 28 losses in another order.
    assert added == pytest.approx([float(total), float(count)], rel=1e-6)
    assert float(count) == weights.sum()


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(2))
def test_the_mean_and_its_gradients_equal_torchs(seed):
    import torch

    decoded, targets, weights = case(seed)

    def mean(decoded):
        total, count = mlm_cross_entropy(*decoded, targets, weights, block=9)
        return total / count

    loss, gradients = jax.jit(jax.value_and_grad(mean))(decoded)
    theirs = [torch.tensor(np.array(array), requires_grad=True) for array in decoded]
    hidden, table, bias = theirs
    labels = np.where(weights, targets, -100)  # torch's mark of what is not predicted
    wanted = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden, table, bias),
        torch.tensor(labels, dtype=torch.long),
    )
    wanted.backward()
    # float32 sums of 96 exponentials and at most 28 losses: a few ulp.
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-6)
    for got, right in zip(gradients, theirs, strict=True):
        # Products over 96 tokens, of terms up to 0.3.
        np.testing.assert_allclose(got, right.grad.numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "head_bias"), [("swiglu", False), ("gelu", True)]
)
def test_the_models_masked_tokens_have_the_loss_of_its_logits(
    tiny_config, activation, head_bias
):
    config = dataclasses.replace(
        tiny_config, activation=activation, head="mlm", head_bias=head_bias
    )
    model = MaskedLanguageModel(config, rngs=nnx.Rngs(0))
    if head_bias:
        model.head.bias[...] = jnp.linspace(-1, 1, config.vocab_size)
    rng = np.random.default_rng(3)
    ids = rng.integers(5, 128, size=(4, 16), dtype=np.int32)
    weights = np.arange(6) < np.array([0, 6, 2, 4])[:, None]
    batch = MlmBatch(
        Tokens(ids, np.ones_like(ids)),
        np.sort(rng.permuted(np.tile(np.arange(16), (4, 1)), axis=1)[:, :6]),
        rng.integers(128, size=(4, 6), dtype=np.int32),
        weights,
    )

    def ours(model):
        table = model.encoder.word_embedding.embedding[...]
        hidden = model.encoder(batch.tokens)
        total, count = masked_cross_entropy(model.head, table, hidden, batch, block=5)
        return total / count

    def plainly(model):
        hidden = model.encoder(batch.tokens)
        masked = jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model.logits(masked), batch.targets
        )
        return jnp.sum(losses * weights) / weights.sum()

    value, gradient = jax.jit(jax.value_and_grad(ours))(model)
    expected, wanted = jax.jit(jax.value_and_grad(plainly))(model)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for got, right in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True
    ):
        # Two layers in float32, their masked tokens added up in another order.
        np.testing.assert_allclose(got, right, atol=2e-6 * max(1, np.abs(right).max()))


def test_the_logits_of_all_masked_tokens_are_never_held():
    count, block = 400, 50
    shapes = jax.eval_shape(lambda: case(0, count=count))

    def mean(decoded, targets, weights):
        return mlm_cross_entropy(*decoded, targets, weights, block=block)[0]

    def largest(function):
        compiled = jax.jit(jax.grad(function)).lower(*shapes).compile()
        program = read_program(compiled.as_text())
        return max(
            np.prod(array.sizes)
            for computation in program.computations.values()
            for each in computation.instructions.values()
            for array in each.result
            if VOCABULARY in array.sizes
        )

    assert largest(at_once) == count * VOCABULARY
    assert largest(mean) == block * VOCABULARY
