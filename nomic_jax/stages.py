"""What a config file defines: `stages`, a tuple of stages, each with its own name.

The fields of a stage are sections, dataclasses themselves; `--section.field VALUE` sets
every stage that has the field, `--STAGE.section.field VALUE` one.
"""

import contextlib
import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.curation.filter_stage import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.evaluation.stage import EvaluateStage
from nomic_jax.fields import nearest
from nomic_jax.stage_order import Stage, check_stages
from nomic_jax.store.corpus import PrepareStage
from nomic_jax.training.accumulation import (
    asks_for_accumulation,
    instead_of_accumulation,
)
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import config_hash
from nomic_jax.training.task import TaskStage

KINDS: dict[type, str] = {
    PrepareStage: "prepare",
    MlmStage: "mlm",
    FilterStage: "filter",
    ContrastiveStage: "contrastive",
    MineStage: "mine",
    TaskStage: "task",
    EvaluateStage: "evaluate",
}


def load_stages(path: Path) -> tuple[Stage, ...]:
    """Run a config file and return the stages it defines.

    It may import those beside it, `import mlm`, and build on their stages.

    Raises:
        ValueError: there is no such file, or what it defines is not a run.
    """
    if not path.is_file():
        there = [str(p) for p in sorted(path.parent.glob("*.py"))]
        hint = nearest(str(path), there) if there else f"{path.parent} holds none"
        raise ValueError(f"no config {path}: {hint}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{path}:{lines[-1]}" if lines else path
        said = f"{place}: {type(error).__name__}: {error}"
        if isinstance(error, TypeError) and asks_for_accumulation(str(error)):
            said += f"; {instead_of_accumulation(contrastive=True)}"
        raise ValueError(said) from error
    stages = getattr(module, "stages", None)
    if not isinstance(stages, tuple):
        raise ValueError(f"{path} must define `stages`, a tuple of stages")
    check_stages(stages)
    return stages


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a file import its neighbours; a file of another folder gets its own ones.

    No compiled files are left there: a config that was just edited is read again.
    """
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    known, writes = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(folder)
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == Path(folder):
                del sys.modules[name]


def resolve(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Return each stage's kind, its fields, and the digest of the stage before it.

    A stage's result depends on those before it, so what its folder is known by must.
    """
    resolved: dict[str, dict[str, Any]] = {}
    before = ""
    for stage in stages:
        config = {"kind": KINDS[type(stage)], **dataclasses.asdict(stage)}
        resolved[stage.name] = {**config, "after": before}
        before = config_hash(resolved[stage.name])
    return resolved
