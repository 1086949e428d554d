"""What a config file defines: `stages`, a tuple of stages, each with its own name.

The fields of a stage are sections, dataclasses themselves; `--section.field VALUE` sets
every stage that has the field, `--STAGE.section.field VALUE` one.
"""

import contextlib
import dataclasses
import importlib.util
import keyword
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nomic_jax.curation.mining import MineStage
from nomic_jax.fields import nearest
from nomic_jax.store.corpus import PrepareStage
from nomic_jax.training.accumulation import (
    asks_for_accumulation,
    instead_of_accumulation,
)
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import config_hash
from nomic_jax.training.task import TaskStage

Stage: TypeAlias = PrepareStage | MlmStage | ContrastiveStage | MineStage | TaskStage

KINDS: dict[type, str] = {
    PrepareStage: "prepare",
    MlmStage: "mlm",
    ContrastiveStage: "contrastive",
    MineStage: "mine",
    TaskStage: "task",
}
RESERVED = ("model",)  # what else a run writes into its folder


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
    """Let a file import its neighbours; a file of another folder gets its own ones."""
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    known = set(sys.modules)
    try:
        yield
    finally:
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


def check_stages(stages: Sequence[object]) -> None:
    """Refuse stages that cannot follow one another.

    Raises:
        ValueError: a stage is of an unknown kind, has a name that cannot be a folder
            or an option, or does not fit those before it; every problem is named.
    """
    problems = [] if stages else ["there is none"]
    seen: dict[str, Stage] = {}
    for stage in stages:
        if not isinstance(stage, Stage):
            problems.append(f"{stage!r} is not a stage")
            continue
        name = stage.name
        if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
            problems.append(
                f"{name!r} cannot be a name: letters, digits and _ can, "
                f"{', '.join(RESERVED)} and Python's words cannot"
            )
        if name in seen:
            problems.append(f"two stages are named {name!r}")
        problems += _misplaced(stage, seen)
        seen[name] = stage
    if problems:
        raise ValueError("the config's stages: " + "; ".join(problems))


def is_place(stores: str) -> bool:
    """Tell a folder or URL of token stores from the name of a stage."""
    return not stores.isidentifier()


def _misplaced(stage: Stage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    kinds = {type(other) for other in earlier.values()}
    trained = not kinds.isdisjoint((MlmStage, ContrastiveStage, TaskStage))
    if isinstance(stage, PrepareStage):
        if PrepareStage in kinds:
            yield f"{stage.name} would bring a second tokenizer: prepare only once"
        return
    if isinstance(stage, MlmStage):
        if trained:
            yield f"{stage.name} would discard what is trained: it starts a fresh model"
    elif not (
        trained
        or (isinstance(stage, ContrastiveStage | TaskStage) and stage.start.model)
    ):
        yield (
            f"{stage.name} needs a stage before it that trains"
            + ("" if isinstance(stage, MineStage) else ", or start.model")
        )
    if isinstance(stage, ContrastiveStage):
        longest = max(stage.data.query_length, stage.data.document_length)
        for other in earlier.values():
            if (
                isinstance(other, MlmStage)
                and not stage.start.model
                and longest > other.model.trained_positions
            ):
                yield (
                    f"{stage.name} has texts of {longest} tokens, {other.name} a model "
                    f"of trained_positions={other.model.trained_positions}"
                )
    if isinstance(stage, TaskStage):
        tasks = [n for n, other in earlier.items() if isinstance(other, TaskStage)]
        if stage.start.stage and stage.start.stage not in tasks:
            hint = f": {nearest(stage.start.stage, tasks)}" if tasks else ""
            yield (
                f"{stage.name} starts with start.stage={stage.start.stage!r}, which is "
                f"no task stage before it{hint}"
            )
        return
    if isinstance(stage, MineStage) or not is_place(stage.data.stores):
        yield from _misgiven(stage, earlier)


def _misgiven(
    stage: MlmStage | ContrastiveStage | MineStage, earlier: Mapping[str, Stage]
) -> Iterator[str]:
    """Say why the stage that a stage takes its data from cannot give it."""
    name = stage.data.stage if isinstance(stage, MineStage) else stage.data.stores
    kinds = PrepareStage if isinstance(stage, MlmStage) else PrepareStage | MineStage
    givers = {n: other for n, other in earlier.items() if isinstance(other, kinds)}
    giver = givers.get(name)
    if giver is None:
        wanted = "prepare" if kinds is PrepareStage else "prepare or mine"
        hint = f": {nearest(name, givers)}" if givers else ""
        place = "" if isinstance(stage, MineStage) else ", and no folder or URL"
        yield (
            f"{stage.name} takes its data from {name!r}, which is no {wanted} stage "
            f"before it{place}{hint}"
        )
    elif isinstance(stage, ContrastiveStage) and isinstance(giver, MineStage):
        if stage.data.num_negatives > giver.mining.count:
            yield (
                f"{stage.name} takes num_negatives={stage.data.num_negatives} of each "
                f"query, of which {giver.name} finds count={giver.mining.count}"
            )
    if not isinstance(giver, PrepareStage) or isinstance(stage, MineStage):
        return
    for length in ("row_length", "query_length", "document_length"):
        asked, made = getattr(stage.data, length, None), getattr(giver.data, length)
        if asked is not None and (
            asked > made or (length == "row_length" and asked < made)
        ):
            yield f"{stage.name} has {length}={asked}, {giver.name} prepares {made}"
