import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from plan_stages import MLM

from nomic_jax.plan.abstract import abstract_step
from nomic_jax.plan.arithmetic import product_flops
from nomic_jax.plan.assumed import Assumptions
from nomic_jax.training.flops import forward_flops


def flops_of(function, *arrays):
    return product_flops(jax.jit(function).trace(*arrays).jaxpr.jaxpr)


def test_a_product_in_loops_counts_as_often_as_it_runs():
    x, w = jnp.ones((3, 4)), jnp.ones((5, 4, 4))

    def run(x, w):
        def layer(x, each):
            return jax.lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ each), x), None

        return jax.lax.scan(layer, x, w)[0]

    assert flops_of(run, x, w) == 5 * 2 * (2 * 3 * 4 * 4)


def test_a_product_on_each_device_counts_for_all_of_them():
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    run = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32)
    assert flops_of(run, x) == 8 * (2 * 2 * 2 * 4)


@pytest.mark.parametrize(
    ("tokens_at_once", "remat", "forwards"),
    [(None, "none", 3), (None, "full", 4), (128, "none", 4), (128, "full", 5)],
)
def test_a_step_computes_the_models_flops_and_what_memory_settings_repeat(
    tokens_at_once, remat, forwards
):
    memory = dataclasses.replace(MLM.memory, tokens_at_once=tokens_at_once, remat=remat)
    stage = dataclasses.replace(MLM, memory=memory)
    step = abstract_step(stage, [], jax.devices()[:1], Assumptions(vocabulary=128))
    config = stage.model.config(vocab_size=128, pad_token_id=0)
    rows, length = step.batch.tokens.ids.shape
    sizes = {"tokens": rows * length, "attended": rows * length**2}
    masked = step.batch.positions.size  # room for more than there are on average
    encoder = forward_flops(config, **sizes)
    head = forward_flops(config, **sizes, masked=masked) - encoder
    repeated = 3 + (tokens_at_once is not None)
    found = product_flops(step.update.trace(step.state, step.batch).jaxpr.jaxpr)
    assert found == forwards * encoder + repeated * head
