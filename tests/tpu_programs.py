"""Compile small steps for a TPU pod, and write what the compiler made of them.

    python tests/tpu_programs.py OUT

OUT gets JSON: the collectives of a contrastive step with one microbatch and with four,
and the bytes that one chip of other meshes holds.
"""

import dataclasses
import json
import sys
from pathlib import Path

from plan_stages import MLM, PAIRS

from nomic_jax.plan.abstract import abstract_step
from nomic_jax.plan.assumed import Assumptions
from nomic_jax.plan.collectives import find_collectives
from nomic_jax.plan.compiled import device_bytes
from nomic_jax.plan.environment import prepare_environment
from nomic_jax.plan.program import read_program
from nomic_jax.plan.topology import open_topology
from nomic_jax.sharding import MeshConfig
from nomic_jax.training.placement import MemoryConfig

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
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
