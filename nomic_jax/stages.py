"""What a config file defines: `stages`, a tuple of stages, each with its own name.

The fields of a stage are sections, dataclasses themselves; `--section.field VALUE` sets
every stage that has the field, `--STAGE.section.field VALUE` one.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from nomic_jax.config import nearest
from nomic_jax.curation.mining import MineStage
from nomic_jax.data.prepare import PrepareStage
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage

Stage: TypeAlias = PrepareStage | MlmStage | ContrastiveStage | MineStage

KINDS: dict[type, str] = {
    PrepareStage: "prepare",
    MlmStage: "mlm",
    ContrastiveStage: "contrastive",
    MineStage: "mine",
}


def load_stages(path: Path) -> tuple[Stage, ...]:
    """Run a config file and return the stages it defines.

    Raises:
        ValueError: there is no such file, or what it defines is not a run.
    """
    if not path.is_file():
        there = [str(p) for p in sorted(path.parent.glob("*.py"))]
        raise ValueError(f"no config {path}: {nearest(str(path), there)}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stages = getattr(module, "stages", None)
    if not isinstance(stages, tuple):
        raise ValueError(f"{path} must define `stages`, a tuple of stages")
    check_stages(stages)
    return stages


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages that cannot follow one another.

    Raises:
        ValueError: a stage is of an unknown kind, shares its name, or uses one that
            does not come before it; every problem is named.
    """
    problems = []
    seen: dict[str, Stage] = {}
    for stage in stages:
        if type(stage) not in KINDS:
            problems.append(f"{stage!r} is not a stage")
            continue
        if stage.name in seen:
            problems.append(f"two stages are named {stage.name!r}")
        if isinstance(stage, ContrastiveStage | MineStage):
            if stage.data.stage not in seen:
                problems.append(
                    f"{stage.name} takes its pairs from {stage.data.stage!r}, which is "
                    f"no stage before it: {nearest(stage.data.stage, seen)}"
                )
            if not any(
                isinstance(s, MlmStage | ContrastiveStage) for s in seen.values()
            ):
                problems.append(f"{stage.name} needs a stage before it that trains")
        if isinstance(stage, MlmStage) and not any(
            isinstance(s, PrepareStage) for s in seen.values()
        ):
            problems.append(f"{stage.name} needs a prepare stage before it")
        seen[stage.name] = stage
    if problems:
        raise ValueError("the config's stages: " + "; ".join(problems))
