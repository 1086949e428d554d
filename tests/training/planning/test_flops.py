import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from plan_stages import MLM

from nomic_jax.batch import Tokens
from nomic_jax.config import PUBLISHED
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.grouped_matmul import TPU_BLOCK, grouped_product
from nomic_jax.model.layers import Mlp
from nomic_jax.model.moe import MixtureOfExperts
from nomic_jax.training.flops import forward_flops, mixing_flops
from nomic_jax.training.planning.abstract import Assumptions, abstract_step
from nomic_jax.training.planning.flops import product_flops


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


def test_rows_of_groups_count_as_each_meeting_one_matrix_both_ways():
    rows, matrices = jnp.ones((10, 4)), jnp.ones((3, 4, 5))
    sizes = jnp.array([2, 8, 0])

    def run(rows, matrices):
        return grouped_product(rows, matrices, sizes).sum()

    once = 2 * 10 * 4 * 5
    assert flops_of(run, rows, matrices) == once
    assert flops_of(jax.grad(run, argnums=(0, 1)), rows, matrices) == 3 * once
    mesh = AbstractMesh((2, 3), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(
        lambda rows, matrices: grouped_product(
            jax.lax.pcast(rows, "expert", to="varying"),
            jax.lax.pcast(matrices, "data", to="varying"),
            jax.lax.pcast(jnp.array([10]), ("data", "expert"), to="varying"),
        ),
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec("expert")),
        out_specs=PartitionSpec(("data", "expert")),
    )
    # Ten rows on either half of the data, each of which is some third's.
    rows = jax.ShapeDtypeStruct((20, 4), jnp.float32)
    assert flops_of(split, rows, matrices) == 2 * once


@pytest.mark.slow
def test_a_step_with_experts_computes_the_models_flops():
    config = dataclasses.replace(
        MLM.model.config(vocab_size=128, pad_token_id=0),
        activation="gelu",
        bias=True,
        num_experts=8,
        head=None,
    )
    tokens = Tokens(*[jnp.ones((4, 64), jnp.int32)] * 2)

    def loss(model):
        return model(tokens).sum()

    lengths = np.full(4, 64)
    forward = forward_flops(config, lengths)
    again = {"none": 0, "dots": mixing_flops(config, lengths), "full": forward}
    for remat, repeated in again.items():
        model = jax.eval_shape(
            lambda remat=remat: NomicBert(config, rngs=nnx.Rngs(0), remat=remat)
        )
        found = flops_of(jax.grad(loss), model)
        # The embeddings take no products, and so no gradient's product either.
        assert found == 3 * forward + repeated, remat


def test_experts_take_a_tpu_little_more_than_an_mlp_of_the_active_parameters():
    """Counted, without the hardware: 60 % of the dense throughput is the least."""
    experts = PUBLISHED["nomic-embed-text-v2-moe"]
    dense = dataclasses.replace(
        experts, num_experts=0, mlp_width=experts.experts_per_token * experts.mlp_width
    )
    tokens = 32 * 512
    x = jax.ShapeDtypeStruct((tokens, 768), jnp.bfloat16)

    def both_ways(kind, config):
        layer = jax.eval_shape(
            lambda: kind(config, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
        )

        def loss(layer, x):
            out = layer(x, None)[0] if kind is MixtureOfExperts else layer(x)
            return out.astype(jnp.float32).sum()

        return flops_of(jax.grad(loss, argnums=(0, 1)), layer, x)

    rows = experts.experts_per_token * tokens
    # Each group's last block of the sums is filled up: a third of all products.
    filled = 1 + experts.num_experts * TPU_BLOCK / rows / 3
    ratio = both_ways(Mlp, dense) / (both_ways(MixtureOfExperts, experts) * filled)
    assert 0.9 < ratio < 1


@pytest.mark.parametrize(
    ("tokens_at_once", "remat", "forwards"),
    [
        (None, "none", 3),
        (None, "dots", 3),
        (None, "full", 4),
        (128, "none", 3),
        (128, "dots", 3),
        (128, "full", 4),
    ],
)
def test_a_step_computes_the_models_flops_and_what_memory_settings_repeat(
    tokens_at_once, remat, forwards
):
    memory = dataclasses.replace(MLM.memory, tokens_at_once=tokens_at_once, remat=remat)
    stage = dataclasses.replace(MLM, memory=memory)
    step = abstract_step(stage, [], jax.devices()[:1], Assumptions(vocabulary=128))
    config = stage.model.config(vocab_size=128, pad_token_id=0)
    rows, length = step.batch.tokens.ids.shape
    lengths = np.full(rows, length)
    masked = step.batch.positions.size  # room for more than there are on average
    encoder = forward_flops(config, lengths)
    head = forward_flops(config, lengths, masked=masked) - encoder
    found = product_flops(step.update.trace(step.state, step.batch).jaxpr.jaxpr)
    mixing = (remat == "dots") * mixing_flops(config, lengths)
    assert found == forwards * encoder + mixing + 3 * head
    again = (forwards - 3) * encoder + mixing
    assert step.repeated == again and not step.twice
