"""What a config file defines: `stages`, a tuple of stages, each with its own name.

The fields of a stage are sections, dataclasses themselves; `--section.field VALUE` sets
every stage that has the field, `--STAGE.section.field VALUE` one. Each stage uses what
an earlier one left.

No option accumulates gradients over batches. The microbatches of one step
(training/microbatches.py; arXiv:2101.06983) give the gradient of the whole batch;
losses of smaller batches, added up, give another one, since rows hold different numbers
of masked tokens and a contrastive loss has fewer negatives.
"""

import contextlib
import dataclasses
import importlib.util
import keyword
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nomic_jax.config import did_you_mean
from nomic_jax.curation.filter import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.curation.pairs import StagePairs
from nomic_jax.data.store.stage import PrepareConfig, PrepareStage
from nomic_jax.downstream.stage import TaskStage
from nomic_jax.evaluation.config import EvaluateStage
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import config_hash

Stage: TypeAlias = (
    PrepareStage
    | MlmStage
    | FilterStage
    | ContrastiveStage
    | MineStage
    | TaskStage
    | EvaluateStage
)
TRAINING = (MlmStage, ContrastiveStage, TaskStage)
RESERVED = ("model",)  # what else a run writes into its folder


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
    trained = not kinds.isdisjoint(TRAINING)
    match stage:
        case PrepareStage():
            if PrepareStage in kinds:
                yield f"{stage.name} would bring a second tokenizer: prepare only once"
            elif trained:
                yield f"{stage.name} comes after a stage that trains: prepare first"
        case MlmStage():
            if trained:
                yield f"{stage.name} would discard what is trained: it starts afresh"
            if not is_place(stage.data.stores):
                yield from _misgiven(stage, stage.data.stores, earlier)
        case ContrastiveStage():
            if not trained and not stage.start.model:
                yield _untrained(stage, "start.model")
            yield from _too_long(stage, earlier)
            if not is_place(stage.data.stores):
                yield from _misgiven(stage, stage.data.stores, earlier)
        case FilterStage():
            if not trained and not stage.filtering.model:
                yield _untrained(stage, "filtering.model")
            yield from _without_pairs(stage.name, stage.data, earlier)
        case MineStage():
            if not trained and not stage.mining.model:
                yield _untrained(stage, "mining.model")
            yield from _without_pairs(stage.name, stage.data, earlier)
        case TaskStage():
            if not trained and not stage.start.model:
                yield _untrained(stage, "start.model")
            yield from _misstarted(stage, earlier)
        case EvaluateStage():
            if not trained:
                yield _untrained(stage)
            if not stage.evaluation.tasks and not any(
                map(_holds_out, earlier.values())
            ):
                yield (
                    f"{stage.name} has nothing to measure: no stage before it holds "
                    "pairs out, so name evaluation.tasks"
                )


def _holds_out(stage: Stage) -> bool:
    return isinstance(stage, PrepareStage) and isinstance(stage.data, PrepareConfig)


def _untrained(stage: Stage, instead: str = "") -> str:
    told = f"{stage.name} needs a stage before it that trains"
    return f"{told}, or {instead}" if instead else told


def _too_long(stage: ContrastiveStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
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


def _misstarted(stage: TaskStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    tasks = [name for name, other in earlier.items() if isinstance(other, TaskStage)]
    if stage.start.stage and stage.start.stage not in tasks:
        hint = f": {did_you_mean(stage.start.stage, tasks)}" if tasks else ""
        yield (
            f"{stage.name} starts with start.stage={stage.start.stage!r}, which is "
            f"not a task stage before it{hint}"
        )


def _without_pairs(
    name: str, data: StagePairs, earlier: Mapping[str, Stage]
) -> Iterator[str]:
    """Say why a stage of curation does not find its pairs, or a tokenizer."""
    if data.places:
        if not any(
            isinstance(other, PrepareStage | MlmStage) for other in earlier.values()
        ):
            yield f"{name} needs a stage before it that brings a tokenizer"
        return
    givers = {
        other_name: other
        for other_name, other in earlier.items()
        if isinstance(other, FilterStage) or _holds_out(other)
    }
    if data.stage not in givers:
        hint = f": {did_you_mean(data.stage, givers)}" if givers else ""
        yield (
            f"{name} takes its pairs from {data.stage!r}, which is not a stage before "
            f"it that keeps their text, prepare or filter{hint}"
        )


def _misgiven(
    stage: MlmStage | ContrastiveStage, giver_name: str, earlier: Mapping[str, Stage]
) -> Iterator[str]:
    """Say why the stage that a stage takes its stores from cannot give them."""
    kinds = (PrepareStage,)
    if isinstance(stage, ContrastiveStage):
        kinds = (PrepareStage, FilterStage, MineStage)
    givers = {
        name: other for name, other in earlier.items() if isinstance(other, kinds)
    }
    giver = givers.get(giver_name)
    if giver is None:
        wanted = "prepare" if kinds == (PrepareStage,) else "prepare, filter or mine"
        hint = f": {did_you_mean(giver_name, givers)}" if givers else ""
        yield (
            f"{stage.name} takes its data from {giver_name!r}, which is not a {wanted} "
            f"stage before it, and no folder or URL{hint}"
        )
        return
    if isinstance(giver, MineStage) and isinstance(stage, ContrastiveStage):
        if stage.data.num_negatives > giver.mining.count:
            yield (
                f"{stage.name} takes num_negatives={stage.data.num_negatives} of each "
                f"query, of which {giver.name} finds count={giver.mining.count}"
            )
    for length in ("row_length", "query_length", "document_length"):
        asked, made = getattr(stage.data, length, None), _made(giver, length, earlier)
        if asked is not None and (
            asked > made or (length == "row_length" and asked < made)
        ):
            yield f"{stage.name} has {length}={asked}, {giver.name} prepares {made}"


def _made(giver: Stage, length: str, earlier: Mapping[str, Stage]) -> int:
    """Return at how many tokens a stage's stores cut texts, or how long rows are."""
    if isinstance(giver, FilterStage | MineStage):
        own = getattr(giver.data, length, 0)
        before = earlier.get(giver.data.stage)
        return own or (_made(before, length, earlier) if before else 0)
    return getattr(giver.data, length) if isinstance(giver, PrepareStage) else 0


_WORD = re.compile(r"\b[\w.]*accum[\w.]*", re.IGNORECASE)


def asks_for_accumulation(text: str) -> bool:
    """Say whether an option, or an error about a keyword, is about accumulation."""
    return _WORD.search(text) is not None


def instead_of_accumulation(*, contrastive: bool) -> str:
    """Say what to set instead.

    Args:
        contrastive: whether a contrastive stage is meant, or may be.
    """
    instead = (
        "gradients are not accumulated over batches: let train.batch_size be the whole "
        "batch of a step, and set memory.tokens_at_once to the tokens that fit a "
        "device; the step takes the batch in microbatches, with its exact gradient"
    )
    why = (
        ". A contrastive loss compares each query with all documents of the batch at "
        "once: accumulated, smaller batches would have fewer negatives"
    )
    return instead + (why if contrastive else "")


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

    It may import those next to it, `import mlm`, and build on their stages.

    Raises:
        ValueError: there is no such file, or what it defines is not a run.
    """
    if not path.is_file():
        there = [str(p) for p in sorted(path.parent.glob("*.py"))]
        hint = did_you_mean(str(path), there) if there else f"{path.parent} holds none"
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
