import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nomic_jax.checkpoints.names import rules_for
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    decay_mask,
    learning_rate,
    make_optimizer,
    parameter_name,
)


def settings(**changes):
    values = {
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "warmup_steps": 4,
        "schedule": "linear",
    }
    return OptimizerConfig(**(values | changes))


def make_model(config):
    kind = MaskedLanguageModel if config.head == "mlm" else NomicBert
    return kind(config, rngs=nnx.Rngs(0))


def by_name(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {parameter_name(path): leaf for path, leaf in leaves}


def published_mask(config):
    """The reference's rule, applied to every tensor of a published checkpoint.

    It decays a tensor unless it is a vector once axes of length one are gone, or its
    name speaks of a bias or the logit scale.
    """
    mask = {}
    for rule in rules_for(config):
        shape = [n for n in rule.shapes(config)[1] if n != 1]
        name = rule.published
        exempt = len(shape) < 2 or "bias" in name or "logit_scale" in name
        mask[rule.ours] = not exempt
    return mask


@pytest.mark.parametrize("head", [None, "mlm", "mlm with biases"])
@pytest.mark.parametrize("types", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_decay_mask_is_the_references_by_published_name(
    tiny_config, head, types, layers
):
    config = dataclasses.replace(
        tiny_config,
        type_vocab_size=types,
        num_layers=layers,
        head="mlm" if head else None,
        head_bias=head == "mlm with biases",
    )
    ours = by_name(decay_mask(make_model(config)))
    # The rule table calls the bare encoder `encoder` too.
    ours = {
        name if name.startswith(("encoder.", "head.")) else f"encoder.{name}": value
        for name, value in ours.items()
    }
    assert ours == published_mask(config)
    assert ours["encoder.type_embedding.embedding"] == (types > 1)
    assert not ours["encoder.blocks.mlp_norm.scale"]
    assert ours["encoder.blocks.attention.qkv.kernel"]


@pytest.mark.slow
def test_what_does_not_decay_keeps_still_without_a_gradient(tiny_model):
    optimizer = make_optimizer(settings(warmup_steps=0), total_steps=10)
    still = jax.tree.map(jnp.zeros_like, tiny_model)
    changes, _ = optimizer.update(still, optimizer.init(tiny_model), tiny_model)
    mask, parameters = by_name(decay_mask(tiny_model)), by_name(tiny_model)
    for name, change in by_name(changes).items():
        expected = -0.01 * 0.1 * parameters[name] if mask[name] else 0 * change
        np.testing.assert_allclose(change, expected, rtol=1e-6, err_msg=name)


def rates(steps, total=20, **changes):
    rate = learning_rate(settings(learning_rate=2.0, **changes), total)
    return [float(rate(step)) for step in steps]


# Six digits are what float32 holds of these quotients.
near = pytest.approx


def test_warmup_rises_from_zero_to_the_peak():
    for schedule in ("linear", "cosine", "inverse_sqrt"):
        found = rates(range(5), schedule=schedule)
        assert found == near([0.0, 0.5, 1.0, 1.5, 2.0], rel=1e-6), schedule


def test_linear_falls_to_zero_at_the_last_step():
    assert rates([4, 8, 12, 20]) == near([2.0, 1.5, 1.0, 0.0], rel=1e-6)
    assert rates([0, 10, 20], warmup_steps=0) == near([2.0, 1.0, 0.0], rel=1e-6)


def test_cosine_falls_to_zero_at_the_last_step():
    found = rates([4, 8, 12, 20], schedule="cosine")
    quarter = 1 + math.cos(math.pi / 4)
    assert found == near([2.0, quarter, 1.0, 0.0], rel=1e-6)


def test_inverse_square_root_falls_as_warmup_by_step():
    found = rates([4, 9, 16, 400], schedule="inverse_sqrt")
    assert found == near([2.0, 2 * math.sqrt(4 / 9), 1.0, 0.2], rel=1e-6)
    found = rates([0, 30_000], schedule="inverse_sqrt", warmup_steps=0)
    assert found == near([2.0, 1.0], rel=1e-6)  # a span of 10,000 steps


def test_a_rate_beyond_the_last_step_is_zero():
    assert rates([25]) == [0.0]
    assert rates([25], schedule="cosine") == [0.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("clip_norm", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", 0.0),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        settings(**{field: value})


def multiplier(name, warmup, total):
    """The reference's schedules, as functions of the optimizer steps already done."""

    def at(step):
        if step < warmup:
            return step / max(1, warmup)
        if name == "linear":
            return max(0.0, (total - step) / max(1, total - warmup))
        if name == "cosine":
            done = (step - warmup) / max(1, total - warmup)
            return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
        span = warmup or 10_000
        return 1 / math.sqrt((step + span - warmup) / span)

    return at


@pytest.mark.torch
@pytest.mark.parametrize("schedule", ["linear", "cosine", "inverse_sqrt"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_step_equals_torch_adamw_with_the_references_groups(
    tiny_config, schedule, clip_norm, warmup
):
    import torch

    steps = 10
    model = make_model(dataclasses.replace(tiny_config, head="mlm", head_bias=True))
    config = settings(
        warmup_steps=warmup,
        schedule=schedule,
        clip_norm=clip_norm,
        beta2=0.98,
        epsilon=1e-6,
    )
    optimizer = make_optimizer(config, steps)
    state = optimizer.init(model)

    decays = published_mask(model.encoder.config)
    theirs = {
        name: torch.nn.Parameter(torch.tensor(np.array(array)))
        for name, array in by_name(model).items()
    }
    groups = [
        {
            "params": [p for name, p in theirs.items() if decays[name] == decay],
            "weight_decay": 0.1 if decay else 0.0,
        }
        for decay in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        adamw, multiplier(schedule, warmup, steps)
    )

    rng = np.random.default_rng(0)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        gradient = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), model
        )
        changes, state = update(gradient, state, model)
        model = optax.apply_updates(model, changes)
        for name, array in by_name(gradient).items():
            theirs[name].grad = torch.tensor(np.array(array))
        if clip_norm:
            # It divides by norm + 1e-6, ours by the norm: a part in 10**8 at this norm.
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
        adamw.step()
        scheduler.step()
        for name, array in by_name(model).items():
            # A step moves a weight by at most 0.01; roots and quotients in float32
            # err by some 1e-6 of that, and weights near 1 by an ulp, 6e-8, a step.
            np.testing.assert_allclose(
                array,
                theirs[name].detach().numpy(),
                rtol=1e-6,
                atol=2e-7,
                err_msg=f"{name} after step {step + 1}",
            )


@pytest.mark.slow
def test_clipping_scales_the_whole_gradient_to_the_norm(tiny_model):
    gradient = jax.tree.map(jnp.ones_like, tiny_model)
    clipped, _ = optax.clip_by_global_norm(0.5).update(gradient, optax.EmptyState())
    # Tens of thousands of equal squares in float32.
    assert float(optax.tree.norm(clipped)) == pytest.approx(0.5, rel=1e-5)
    small = jax.tree.map(lambda x: x * 1e-6, gradient)
    unclipped, _ = optax.clip_by_global_norm(0.5).update(small, optax.EmptyState())
    for ours, before in zip(
        jax.tree.leaves(unclipped), jax.tree.leaves(small), strict=True
    ):
        np.testing.assert_array_equal(ours, before)
