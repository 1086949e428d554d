"""The checkpoints of a stage: plain named arrays, written by Orbax in the background.

    FOLDER/checkpoints/STEP

Each appears whole or not at all, and is restored onto whatever mesh there is. One that
cannot be read, because a file was cut or lost, is renamed to STEP.damaged, and an older
one is used.
"""

import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from nomic_jax.storage import is_remote, join, local_path
from nomic_jax.training.optimizer import like_named, named_arrays
from nomic_jax.training.steps import TrainState


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
            f"{damaged[steps[-1]]}); remove the folder to begin the stage again"
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


REMOTE = ("gs://", "s3://")  # the URLs that Orbax writes to


def check_checkpoints_place(folder: str | Path) -> None:
    """Refuse a folder that checkpoints cannot be written to, before anything is done.

    Raises:
        ValueError: it is a URL of another system than those that Orbax writes to.
    """
    if is_remote(folder) and not str(folder).startswith(REMOTE):
        raise ValueError(
            f"checkpoints cannot be written to {folder}: Orbax writes to local "
            f"folders, {' and '.join(REMOTE)}"
        )


def check_fit(like: TrainState, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse arrays that are not those of a state.

    Raises:
        ValueError: names or shapes differ; all of them are listed.
    """
    expected = {name: array.shape for name, array in named_arrays(like).items()}
    problems = [f"missing {name}" for name in expected if name not in shapes]
    problems += [f"unused {name}" for name in shapes if name not in expected]
    problems += [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems:
        raise ValueError("the checkpoint does not fit: " + "; ".join(problems))


def from_named_arrays(
    like: TrainState, arrays: Mapping[str, jax.Array | np.ndarray]
) -> TrainState:
    """Build a state of the structure of `like` from named arrays.

    Raises:
        ValueError: names or shapes differ; all of them are listed.
    """
    check_fit(like, {name: tuple(array.shape) for name, array in arrays.items()})
    return like_named(like, arrays)


class Checkpoints:
    """The checkpoints of a stage, newest last; a context that waits for its writes.

    With several hosts, all of them make the same calls.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int,
        best: str = "",
        best_mode: Literal["max", "min"] = "max",
    ):
        """Open the checkpoints of a stage's folder; set damaged newest ones aside.

        Args:
            folder: the stage's; a URL must be one that Orbax writes to.
            keep: newest checkpoints that stay.
            best: a metric; the checkpoint that is best by it stays as well.
            best_mode: whether the largest or the smallest value is the best.

        Raises:
            ValueError: the folder is at a place where Orbax does not write, or there
                are checkpoints but not one of them can be read.
        """
        import orbax.checkpoint as ocp
        from etils import epath
        from orbax.checkpoint.checkpoint_managers import (
            AnyPreservationPolicy,
            BestN,
            LatestN,
        )

        place = join(folder, "checkpoints")
        check_checkpoints_place(place)
        self.path = epath.Path(place if is_remote(place) else local_path(place))
        self.path = self.path if is_remote(place) else self.path.resolve()
        set_damaged_aside(self.path)
        self.best = best
        policies: list[Any] = [LatestN(keep)]
        worst = -math.inf if best_mode == "max" else math.inf

        def value(metrics: Mapping[str, float]) -> float:
            return metrics.get(best, worst)

        if best:
            lowest = best_mode == "min"
            policies.append(BestN(get_metric_fn=value, reverse=lowest, n=1))
        self._save = ocp.args.StandardSave
        self._restore = ocp.args.StandardRestore

        class Manager(ocp.CheckpointManager):
            def reached_preemption(self, step: int) -> bool:
                # Orbax asks this from a thread that finishes an older step, and JAX's
                # service would take that for how far this host is. The loop asks.
                return False

        self._manager = Manager(
            self.path,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                # The policy decides; these two make Orbax write the metrics down.
                best_fn=value if best else None,
                best_mode=best_mode,
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the write in progress."""
        self._manager.close()

    def save(
        self, step: int, state: TrainState, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Copy the state to the host and write it in the background.

        On return the state may be donated to the next step.

        Args:
            step: optimizer steps done.
            state: after this step.
            metrics: of this step; a checkpoint without the best metric's value comes
                last.
        """
        if self.latest_step == step:
            return
        value = (metrics or {}).get(self.best)
        if value is None or not math.isfinite(value):
            known = {}
        else:
            known = {self.best: float(value)}
        self._manager.save(
            step,
            args=self._save(named_arrays(state)),
            metrics=known,
            force=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step that is best by the metric, the latest where there is no metric."""
        return self._manager.best_step()

    def restore(self, like: TrainState) -> TrainState:
        """Load the newest checkpoint into the structure and placement of `like`.

        The placement may be another than that of the run which wrote it.

        Raises:
            ValueError: the checkpoint holds other arrays; all differences are listed.
        """
        step = self.latest_step
        assert step is not None, "there is no checkpoint to restore"
        found = self._manager.item_metadata(step).tree
        check_fit(like, {name: tuple(array.shape) for name, array in found.items()})
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            named_arrays(like),
        )
        arrays = self._manager.restore(step, args=self._restore(abstract))
        return from_named_arrays(like, arrays)
