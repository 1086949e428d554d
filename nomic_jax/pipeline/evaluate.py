"""What a run's model is measured on: held-out pairs, and tasks that the config names.

The first host measures, on its own devices; the others wait and get the figures.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nomic_jax.distributed import hosts
from nomic_jax.distributed.devices import replicate_on_local_devices
from nomic_jax.evaluation.config import EvaluateStage
from nomic_jax.evaluation.kinds.registry import Task, open_tasks
from nomic_jax.evaluation.kinds.retrieval import from_pairs
from nomic_jax.evaluation.measurement import measure_all, metrics_of, with_all_prompts
from nomic_jax.model.encoder import NomicBert
from nomic_jax.pipeline.order import (
    Stage,
    StageKind,
    holds_out,
    is_trained,
    untrained,
)
from nomic_jax.pipeline.report import (
    EvaluationRow,
    Figures,
    PipelineState,
    format_table,
)
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import RunFolder


def measured(
    carried: PipelineState, label: str, folder: RunFolder, file: str = "evaluation.json"
) -> PipelineState:
    """Add the model's figures on the held-out pairs, measured once a run."""
    if not carried.held_out:
        return carried
    place = join(folder.place, file)

    def work() -> dict[str, dict[str, float]]:
        if not exists(place):
            write_json(place, _figures(carried))
        return read_json(place)

    row = EvaluationRow(label, hosts.broadcast_from_host0(label, work))
    say(format_table([row]))
    return dataclasses.replace(carried, rows=(*carried.rows, row))


def _figures(carried: PipelineState) -> dict[str, dict[str, float]]:
    """Measure retrieval on the held-out pairs of each source."""
    embedder = carried.embedder
    return {task.name: metrics_of(task, embedder) for task in _tasks(carried)}


def _tasks(carried: PipelineState) -> tuple[Task, ...]:
    """Make a task of each source's held-out pairs, with the source's own prompts."""
    config, found = carried.embedder.config, []
    for source in carried.held_out:
        judged = from_pairs(
            source.pairs,
            query_prompt=config.task_of(source.query_prefix),
            document_prompt=config.task_of(source.document_prefix),
        )
        found.append(Task("retrieval", source.name, "held out", judged))
    return tuple(found)


def misplaced(stage: EvaluateStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    if not is_trained(earlier):
        yield untrained(stage)
    if not stage.evaluation.tasks and not any(map(holds_out, earlier.values())):
        yield (
            f"{stage.name} has nothing to measure: no stage before it holds pairs out, "
            "so name evaluation.tasks"
        )


def evaluated(
    stage: EvaluateStage, carried: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
    """Measure the model on a stage's tasks, or on the held-out pairs.

    Tables and plots go into the stage's folder, the main figures into the report. What
    was measured before a stop is read from there.

    Raises:
        ValueError: a task cannot be read, or the model cannot take a dimension or a
            length.
    """
    config = stage.evaluation

    def work() -> dict[str, dict[str, float]]:
        found = measure_all(
            carried.embedder,
            open_tasks(config.tasks) or _tasks(carried),
            config,
            source=f"before {stage.name}",
            out=folder.place,
        )
        return {
            f"{each.task} at {each.length} tokens, {found.tasks[each.task]['main']}": {
                f"{figures.dim} {figures.precision}": figures.metrics[
                    found.tasks[each.task]["main"]
                ]
                for figures in each.figures
                if figures.problem is None
            }
            for each in found.measured
        }

    shown = Figures(stage.name, hosts.broadcast_from_host0(stage.name, work))
    return dataclasses.replace(carried, figures=(*carried.figures, shown))


EVALUATE = StageKind("evaluate", EvaluateStage, misplaced, evaluated)


def check_tasks(stages: Sequence[object]) -> None:
    """Refuse tasks that cannot be read, before anything is trained.

    Raises:
        ValueError: with the task, the file and the line.
    """
    for stage in stages:
        if isinstance(stage, MlmStage | ContrastiveStage):
            open_tasks(stage.train.tasks)
        elif isinstance(stage, EvaluateStage):
            open_tasks(stage.evaluation.tasks)


def while_training(
    carried: PipelineState, tasks: Sequence[str]
) -> Callable[[NomicBert], dict[str, float]] | None:
    """Make what measures an encoder while it trains: `TASK/METRIC` to figure.

    Args:
        carried: whose held-out pairs are searched, a task for each source of them.
        tasks: further ones, as `nomic-jax evaluate` takes them.

    Returns:
        None where there is nothing to measure it on.

    Raises:
        ValueError: a task cannot be read, or has the name of a source.
    """
    opened = open_tasks(tasks)
    sources = {source.name for source in carried.held_out}
    if twice := sorted(sources & {task.name for task in opened}):
        raise ValueError(
            f"tasks {', '.join(twice)} have the names of held-out sources; rename "
            "their folders or files"
        )
    if not opened and not carried.held_out:
        return None

    def measure(encoder: NomicBert) -> dict[str, float]:
        own = dataclasses.replace(carried, model=replicate_on_local_devices(encoder))

        def work() -> dict[str, dict[str, float]]:
            embedder = with_all_prompts(own.embedder)
            return _figures(own) | {
                task.name: metrics_of(task, embedder) for task in opened
            }

        return {
            f"{source}/{metric}": value
            for source, metrics in hosts.broadcast_from_host0(
                "evaluation", work
            ).items()
            for metric, value in metrics.items()
        }

    return measure


def say(text: Any) -> None:
    """Tell whoever watches the run; the first host speaks for all."""
    if hosts.is_first():
        print(text, file=sys.stderr, flush=True)
