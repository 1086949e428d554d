"""Compile small steps for a TPU pod, and write what the compiler made of them.

    python tests/helpers/tpu_programs.py OUT

OUT gets JSON: the collectives of a contrastive step with one microbatch and with four,
the bytes that one chip of other meshes holds, and the largest array of an encoder with
experts, forward and backward.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from plan_stages import MLM, PAIRS

from nomic_jax.batch import Tokens
from nomic_jax.config import ModelConfig
from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.moe import load_balancing_loss
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.planning.abstract import Assumptions, abstract_step
from nomic_jax.training.planning.compile import device_bytes, find_collectives
from nomic_jax.training.planning.environment import prepare_environment
from nomic_jax.training.planning.hlo import read_program
from nomic_jax.training.planning.topology import open_topology

ASSUMED = Assumptions(vocabulary=1000)
MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(fsdp=16),
    "tensor": MeshConfig(tensor=4),
}
MOST_ROWS = (None, 3)  # of 10 on a chip: one microbatch, and four


def main(out):
    prepare_environment()
    devices = open_topology("v5e:4x4").devices

    def compiled(stage, **sections):
        stage = dataclasses.replace(stage, **sections)
        step = abstract_step(stage, [MLM], devices, ASSUMED)
        return step, step.update.trace(
            step.state, step.batch, *step.frozen
        ).lower().compile()

    found = {}
    for most in MOST_ROWS:
        memory = MemoryConfig(tokens_at_once=most and most * 64)
        step, program = compiled(PAIRS, memory=memory)
        moved = find_collectives(read_program(program.as_text()), devices=16)
        found[f"contrastive/{most}"] = {
            "rows": step.rows,
            "listed": step.batch.slots.shape,
            "collectives": [
                (each.kind, each.in_loop, list(map(str, each.arrays))) for each in moved
            ],
        }
    for name, mesh in MESHES.items():
        step, program = compiled(MLM, mesh=mesh)
        arguments = program.memory_analysis().argument_size_in_bytes
        found[name] = arguments - device_bytes(step.batch)
    found["experts"] = largest_array(devices[0])
    Path(out).write_text(json.dumps(found))


def largest_array(device):
    """Return elements: of the largest array, and of all tokens in all experts."""
    config = ModelConfig(
        vocab_size=1024,
        type_vocab_size=1,
        num_layers=2,
        width=128,
        num_heads=4,
        mlp_width=384,
        layer_norm_epsilon=1e-5,
        rope_base=10_000.0,
        trained_positions=128,
        activation="gelu",
        bias=True,
        num_experts=8,
    )
    place = SingleDeviceSharding(device)

    def shapes(function):
        return jax.tree.map(
            lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=place),
            jax.eval_shape(function),
        )

    model = shapes(
        lambda: NomicBert(config, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    )
    tokens = shapes(lambda: Tokens(*[jnp.ones((16, 128), jnp.int32)] * 2))

    def loss(model, tokens):
        found = model.encode(tokens)
        balance = load_balancing_loss(found.routing).mean()
        return found.hidden.astype(jnp.float32).sum() + balance

    compiled = jax.jit(jax.grad(loss)).lower(model, tokens).compile()
    program = read_program(compiled.as_text())
    largest = max(
        math.prod(array.sizes)
        for computation in program.computations.values()
        for each in computation.instructions.values()
        for array in each.result
    )
    return largest, 16 * 128 * 8 * config.mlp_width


if __name__ == "__main__":
    main(sys.argv[1])
