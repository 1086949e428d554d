"""A small training run as a process of its own: to be killed, or to be two hosts.

    python training_process.py FOLDER STEPS SAVE_EVERY SECONDS_A_STEP [HOST HOSTS PORT]

The model is a matrix, so that a process starts fast; it is large enough that a
checkpoint takes a while to write.
"""

import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nomic_jax.batch import MlmBatch, StepBatch, Tokens
from nomic_jax.training.finite import keep_if_finite
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.steps import TrainState

WIDTH = 512


def batch_at(step):
    rows = np.random.default_rng(step).integers(1, WIDTH, size=(4, 8), dtype=np.int32)
    arrays = MlmBatch(Tokens(rows, np.ones_like(rows)), rows, rows, rows > 0)
    return StepBatch("text", arrays, num_tokens=rows.size, num_columns=rows.size)


def main(folder, steps, save_every, seconds, host=0, hosts=1, port=0):
    """Train, sleeping in each step so that a signal can come at any of them."""
    if hosts > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", hosts, host)
    mesh = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    rows = jax.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    optimizer = optax.adam(0.01)

    def fresh():
        model = {"w": jnp.ones((WIDTH, WIDTH))}
        return TrainState.fresh(model, optimizer)

    shapes = jax.eval_shape(fresh)
    layout = jax.tree.map(lambda x: rows if x.ndim == 2 else everywhere, shapes)

    def update(state, batch):
        def loss(model):
            return jnp.mean(jnp.square(model["w"][batch.tokens.ids] - 0.1))

        value, gradient = jax.value_and_grad(loss)(state.model)
        changes, moments = optimizer.update(gradient, state.optimizer, state.model)
        norm = optax.tree.norm(gradient)
        new = (optax.apply_updates(state.model, changes), moments)
        old = (state.model, state.optimizer)
        (model, moments), skipped = keep_if_finite(
            old, new, loss=value, gradient_norm=norm
        )
        metrics = {"loss": value, "gradient_norm": norm, "skipped": skipped}
        return TrainState(model, moments, state.step + 1), metrics

    compiled = jax.jit(update, donate_argnums=0, out_shardings=(layout, everywhere))

    def slow(state, batch):
        time.sleep(seconds)
        return compiled(state, batch)

    state = train(
        "stage",
        jax.jit(fresh, out_shardings=layout)(),
        slow,
        batch_at,
        LoopConfig(
            steps=steps, batch_size=4, seed=0, log_every=3, save_every=save_every
        ),
        RunFolder.open(folder, {}, write=host == 0),
        learning_rate=lambda step: 0.01,
        # The same on every host: the whole batch, everywhere.
        place=lambda arrays: jax.device_put(arrays, everywhere),
    )
    assert int(state.step) == steps


if __name__ == "__main__":
    folder, steps, save_every, seconds, *hosts = sys.argv[1:]
    main(folder, int(steps), int(save_every), float(seconds), *map(int, hosts))
