"""Which stages can follow one another, and where each takes its data from."""

import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from nomic_jax.curation.filter_stage import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.curation.stage_pairs import StagePairs
from nomic_jax.evaluation.stage import EvaluateStage
from nomic_jax.fields import nearest
from nomic_jax.store.corpus import PrepareConfig, PrepareStage
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.task import TaskStage

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
        hint = f": {nearest(stage.start.stage, tasks)}" if tasks else ""
        yield (
            f"{stage.name} starts with start.stage={stage.start.stage!r}, which is "
            f"no task stage before it{hint}"
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
        hint = f": {nearest(data.stage, givers)}" if givers else ""
        yield (
            f"{name} takes its pairs from {data.stage!r}, which is no stage before it "
            f"that keeps their text, prepare or filter{hint}"
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
        hint = f": {nearest(giver_name, givers)}" if givers else ""
        yield (
            f"{stage.name} takes its data from {giver_name!r}, which is no {wanted} "
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
