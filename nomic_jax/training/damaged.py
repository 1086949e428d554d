"""Checkpoints that cannot be read any more: set aside, so that an older one is used.

    checkpoints/STEP -> checkpoints/STEP.damaged

A checkpoint is written whole or not at all, but what was written may be cut or lost.
"""

import sys
import warnings
from typing import Any

import jax
import numpy as np


def set_damaged_aside(folder: Any) -> None:
    """Rename the newest checkpoints until the newest can be read; one host does it.

    Args:
        folder: of checkpoints named by their step, an `epath.Path`; it may be missing.

    Raises:
        ValueError: there are checkpoints, and none can be read; none is renamed.
    """
    problem = _without_damaged(folder) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        fine = multihost_utils.broadcast_one_to_all(np.asarray(problem is None))
        if not fine and problem is None:
            problem = f"host 0 can read none of the checkpoints in {folder}"
    if problem is not None:
        raise ValueError(problem)


def _without_damaged(folder: Any) -> str | None:
    """Set damaged checkpoints aside, or say why that cannot help."""
    steps = (
        sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        if folder.exists()
        else []
    )
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        fault = _fault(folder / str(step) / "default")
        if fault is None:
            break
        damaged[step] = fault
    if steps and len(damaged) == len(steps):
        return (
            f"none of the checkpoints in {folder} can be read (step {steps[-1]}: "
            f"{damaged[steps[-1]]}); remove the folder to begin the stage anew"
        )
    for step, fault in damaged.items():
        aside = folder / f"{step}.damaged"
        if aside.exists():
            aside.rmtree()
        (folder / str(step)).rename(aside)
        print(
            f"checkpoint {folder / str(step)} is damaged ({fault}); it is now {aside}, "
            f"and step {max(set(steps) - set(damaged))} is used",
            file=sys.stderr,
            flush=True,
        )
    return None


def _fault(path: Any) -> str | None:
    """Read a checkpoint whole, on this host alone, and say what is wrong, if anything.

    Twice reading the one that is used costs seconds at the start of a run, and lets the
    hosts agree on it before any of them waits for the others in Orbax.
    """
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="damaged",
    )
    reader = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is missing: told by the error
        try:
            tree = reader.metadata(path).tree
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            every = jax.tree.map(lambda _: as_numpy, tree)
            reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=every))
        # Whatever a reader trips over: JSON, a missing file, a block cut short.
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"
        finally:
            reader.close()
    return None
