"""Compare a step with a guide and a teacher on meshes of 8 devices and on one device.

    python tests/helpers/frozen_gradients.py OUT

OUT gets, as JSON, by mesh: loss and distillation loss, the largest error of a gradient
by its largest entry, and what the compiled step gathers. XLA_FLAGS forces 8 devices.
"""

import json
import sys

import jax
import numpy as np
from mesh_gradients import collectives
from test_frozen import LOSS, TEACHER, batch_of, frozen, model, step

from nomic_jax.distributed.mesh import MeshConfig, make_mesh, put_batch, row_parts
from nomic_jax.training.placement import Placement, place_state

SIZES = {"one": None, "data": (8, 1), "both": (2, 4)}


def main(out):
    written, expected = {}, None
    for name, sizes in SIZES.items():
        mesh = sizes and make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1]))
        given = (
            place_state(model(), mesh),
            put_batch(batch_of(row_parts(mesh)), mesh),
            place_state(frozen(), mesh),
        )
        compiled = step(LOSS, Placement(mesh, most_rows=2), TEACHER)
        compiled = compiled.lower(*given).compile()
        (loss, metrics), gradient = jax.device_get(compiled(*given))
        expected = gradient if expected is None else expected
        errors = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)),
            gradient,
            expected,
        )
        written[name] = {
            "loss": float(loss),
            "distillation": float(metrics["distillation"]),
            "gradient_error": max(jax.tree.leaves(errors)),
            "gathers": [
                (shapes.partition("{")[0], in_loop)
                for kind, shapes, in_loop in collectives(compiled.as_text())
                if kind == "all-gather" and "f32" in shapes
            ],
        }
    with open(out, "w") as file:
        json.dump(written, file)


if __name__ == "__main__":
    main(sys.argv[1])
