"""What may follow what in a run: the stages' union, their protocol, shared rules."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from nomic_jax.config import did_you_mean
from nomic_jax.curation.filter import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.data.store.stage import PrepareConfig, PrepareStage
from nomic_jax.downstream.stage import TaskStage
from nomic_jax.evaluation.config import EvaluateStage
from nomic_jax.pipeline.report import PipelineState
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import RunFolder

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


def go_on(
    stage: Any, state: PipelineState | None, folder: RunFolder, out: str
) -> PipelineState:
    """Begin with what the stages before have left."""
    assert state is not None, "check_stages puts prepare or a training stage first"
    return state


@dataclasses.dataclass(frozen=True)
class StageKind:
    """A kind of stage: one object for all that a run asks of it."""

    name: str  # in config.json and in the log
    stage: type  # the dataclass of its fields
    # Say why a stage cannot follow the earlier ones, by their names.
    misplaced: Callable[[Any, Mapping[str, Stage]], Iterator[str]]
    # Do what a stage is for, or read it where it is done; of `out`, the run's folder.
    run: Callable[[Any, PipelineState, RunFolder, str], PipelineState]
    # Return what a stage begins with: what is there, or what it brings itself.
    begin: Callable[[Any, PipelineState | None, RunFolder, str], PipelineState] = go_on


def is_place(stores: str) -> bool:
    """Tell a folder or URL of token stores from the name of a stage."""
    return not stores.isidentifier()


def holds_out(stage: Stage) -> bool:
    """Whether a stage keeps pairs for evaluation, and the text of the others."""
    return isinstance(stage, PrepareStage) and isinstance(stage.data, PrepareConfig)


def untrained(stage: Stage, instead: str = "") -> str:
    """Say that a stage needs a trained model, and which field would name one."""
    told = f"{stage.name} needs a stage before it that trains"
    return f"{told}, or {instead}" if instead else told


def misgiven(
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


def is_trained(earlier: Mapping[str, Stage]) -> bool:
    """Whether a stage before leaves a model."""
    return any(isinstance(other, TRAINING) for other in earlier.values())
