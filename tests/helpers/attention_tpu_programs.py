"""Compile attention and a training step with it for TPUs that are not here.

    python tests/helpers/attention_tpu_programs.py OUT

OUT gets JSON: for each version of the chip and each case the kernels that attention's
forward and backward became, and whether scores of all columns remain; for a step on
each mesh the FLOPs of the compiled program and of the traced one, and those outside.
"""

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from plan_stages import MLM

from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.model.attention import splash
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.planning.abstract import Assumptions, abstract_step
from nomic_jax.training.planning.compile import KERNEL, compile_step
from nomic_jax.training.planning.environment import prepare_environment
from nomic_jax.training.planning.flops import product_flops
from nomic_jax.training.planning.roofline import Account
from nomic_jax.training.planning.topology import open_topology

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
# Length, window, width of a head, type: tiles of each size, a length between them.
CASES = (
    (2048, None, 64, "bfloat16"),
    (640, 64, 32, "bfloat16"),
    (1300, None, 64, "float32"),
    (768, 130, 128, "bfloat16"),
)
LENGTH = 1024
# Two heads of 64 columns, so that attention is as much of the step as it ever is.
STAGE = dataclasses.replace(
    MLM,
    model=dataclasses.replace(MLM.model, num_heads=2, trained_positions=LENGTH),
    data=dataclasses.replace(MLM.data, row_length=LENGTH),
    train=dataclasses.replace(MLM.train, batch_size=16),
)
MESHES = {
    "data": MeshConfig(),
    "fsdp and tensor": MeshConfig(fsdp=2, tensor=2),
}


def main(out):
    prepare_environment()
    found = {"attention": {}, "step": {}}
    for name, case in itertools.product(TOPOLOGIES, CASES):
        device = open_topology(name).devices[0]
        found["attention"][f"{name} {case}"] = of_attention(device, *case)
    for (name, mesh), tokens in itertools.product(MESHES.items(), (None, LENGTH)):
        topology = open_topology("v5p:2x2x1")
        memory = MemoryConfig(tokens_at_once=tokens)
        stage = dataclasses.replace(STAGE, mesh=mesh, memory=memory)
        step = abstract_step(stage, [], topology.devices, Assumptions(vocabulary=1000))
        compiled = compile_step(step, topology.chip)
        traced = step.update.trace(step.state, step.batch).jaxpr.jaxpr
        found["step"][f"{name}, {tokens}"] = {
            "attention": step.attention,
            "compiled": compiled.flops,
            "traced": product_flops(traced),
            "outside": Account(step, topology, compiled).outside,
        }
    Path(out).write_text(json.dumps(found))


def of_attention(device, length, window, width, dtype):
    place = SingleDeviceSharding(device)
    heads = jax.ShapeDtypeStruct((2, length, 4, width), dtype, sharding=place)
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=place)

    def step(q, k, v, segments):
        def total(q, k, v):
            out = splash.attend(q, k, v, segments, window)
            return out.astype(jnp.float32).sum()

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    text = jax.jit(step).lower(heads, heads, heads, segments).compile().as_text()
    columns = splash.tiled(length)[0]
    lines = [line for line in text.splitlines() if KERNEL in line]
    kernels = [line.strip().removeprefix("%").partition(".")[0] for line in lines]
    return kernels, bool(re.search(rf"\[[\d,]*\b{columns},{columns}\]", text))


if __name__ == "__main__":
    main(sys.argv[1])
