"""A stage's folder: its resolved config, its metrics, its checkpoints.

    config.json  metrics.jsonl  checkpoints/STEP

Checkpoints are plain named arrays, written by Orbax in the background and atomically.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nomic_jax.storage import write_json
from nomic_jax.training.optimizer import parameter_name
from nomic_jax.training.steps import TrainState
from nomic_jax.whole_file import whole_file


def config_hash(config: Mapping[str, Any]) -> str:
    """Digest a resolved config, the same for equal configs however they were made."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """List the fields in which two resolved configs differ, with both values."""
    found = []
    for name in sorted({*old, *new}):
        mine, theirs = old.get(name), new.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += differing_fields(mine, theirs, f"{prefix}{name}.")
        elif mine != theirs:
            found.append(f"{prefix}{name} was {mine!r} and is {theirs!r}")
    return found


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one stage, opened for one resolved config."""

    path: Path

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """Make the folder, or find it as an earlier run with the same config left it.

        Raises:
            ValueError: the folder belongs to another config.
        """
        cls.check(path, config)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "config.json", {"hash": config_hash(config), "stage": config})
        return cls(path)

    @staticmethod
    def check(path: Path, config: Mapping[str, Any]) -> None:
        """Refuse a folder in which another config has run.

        Raises:
            ValueError: the fields that differ are named with both values.
        """
        file = path / "config.json"
        # A stage that failed before it left anything else is as good as new.
        if not file.is_file() or len(list(path.iterdir())) == 1:
            return
        earlier = json.loads(file.read_text())["stage"]
        new = json.loads(json.dumps(config))  # tuples become lists, as on disk
        if changed := differing_fields(earlier, new):
            raise ValueError(
                f"{path} holds a run of another config: {'; '.join(changed)}; "
                f"use another --out, or remove {path.parent}"
            )

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line, one line a logged step."""
        return self.path / "metrics.jsonl"

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop what an interrupted run logged beyond the checkpoint that is resumed."""
        if not self.metrics_file.is_file():
            return
        kept = [
            line for line in read_metrics(self.metrics_file) if line["step"] <= step
        ]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if text == self.metrics_file.read_text():
            return
        with whole_file(self.metrics_file) as file:
            file.write(text.encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def named_arrays(state: TrainState) -> dict[str, jax.Array]:
    """Flatten a state into plain arrays under plain names."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {parameter_name(path): array for path, array in leaves}
    assert len(named) == len(leaves), "two arrays of the state share a name"
    return named


def from_named_arrays(
    like: TrainState, arrays: Mapping[str, jax.Array | np.ndarray]
) -> TrainState:
    """Build a state of the structure of `like` from named arrays.

    Raises:
        ValueError: names or shapes differ; all of them are listed.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = {parameter_name(path): leaf.shape for path, leaf in leaves}
    problems = [f"missing {name}" for name in expected if name not in arrays]
    problems += [f"unused {name}" for name in arrays if name not in expected]
    problems += [
        f"{name} is {tuple(arrays[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if problems:
        raise ValueError("the checkpoint does not fit: " + "; ".join(problems))
    return jax.tree.unflatten(structure, [arrays[name] for name in expected])


class Checkpoints:
    """The checkpoints of a stage, newest last; a context that waits for its writes."""

    def __init__(self, folder: Path, *, keep: int):
        """Open the checkpoints of a stage's folder, keeping the newest `keep`."""
        import orbax.checkpoint as ocp

        self._save = ocp.args.StandardSave
        self._restore = ocp.args.StandardRestore
        self._manager = ocp.CheckpointManager(
            (folder / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the write in progress."""
        self._manager.close()

    def save(self, step: int, state: TrainState) -> None:
        """Copy the state to the host and write it in the background.

        On return the state may be donated to the next step.
        """
        if self.latest_step != step:
            self._manager.save(step, args=self._save(named_arrays(state)), force=True)

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Load the newest checkpoint into the structure and placement of `like`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            named_arrays(like),
        )
        arrays = self._manager.restore(self.latest_step, args=self._restore(abstract))
        return from_named_arrays(like, arrays)
