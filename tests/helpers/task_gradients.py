"""Compute a task's loss and gradient on one and on eight forced CPU devices.

    python tests/helpers/task_gradients.py OUT

OUT.npz gets, for each of the two, the loss and the gradient of every parameter, of
batches in microbatches, under dropout: of questions with choices, and of pretraining,
whose rows have unequal numbers of masked tokens, with parameters that are split.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from task_files import HEADS, config, read_task, tokenizer

from nomic_jax.distributed.mesh import MeshConfig, make_mesh, put_batch, row_parts
from nomic_jax.downstream.batches import TaskBatches
from nomic_jax.downstream.heads import TaskEncoding
from nomic_jax.downstream.losses import task_objective
from nomic_jax.downstream.stage import config_with_head
from nomic_jax.model.heads import make_model
from nomic_jax.training.optimizer import named_arrays
from nomic_jax.training.placement import Placement, place_state

MESHES = {
    "choices": MeshConfig(data=8),
    "pretraining": MeshConfig(data=4, fsdp=2),
}


def main(out):
    """Write both."""
    found = {}
    for task, layout in MESHES.items():
        head = HEADS[task]
        with tempfile.TemporaryDirectory() as folder:
            data, examples = read_task(Path(folder), task, 17)
        made = config_with_head(config(dropout=0.1), head, ())
        encoding = TaskEncoding(head, data, tokenizer(), True, ())
        for name, sizes in (("one", MeshConfig()), ("eight", layout)):
            mesh = make_mesh(sizes, jax.devices()[: 1 if name == "one" else 8])
            # Eight devices have rows of their own, in which two examples are packed.
            batch = TaskBatches(
                "task",
                encoding.rows(examples),
                batch_size=16,
                seed=0,
                pad_id=0,
                max_length=16,
                masking=encoding.masking,
                parts=row_parts(mesh),
            )(0).arrays
            model = jax.jit(lambda made=made: make_model(made, rngs=nnx.Rngs(0)))()
            objective = task_objective(made, Placement(mesh, 1))
            step = jax.jit(jax.value_and_grad(objective, has_aux=True))
            (loss, _), gradient = step(
                place_state(model, mesh), put_batch(batch, mesh), jax.random.key(3)
            )
            found[f"{task}/{name}/loss"] = loss
            for parameter, array in named_arrays(gradient).items():
                found[f"{task}/{name}/{parameter}"] = array
    np.savez(out, **jax.device_get(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
