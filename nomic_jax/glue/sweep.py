"""The sweep over GLUE's grid: each cell a run of its own, done once, its figures kept.

    OUT/TASK/CELL/cell.json   figures, written last      OUT/glue.json   OUT/glue.md

A cell's models and checkpoints are removed when its figures are there, but for those
that the best cell of MNLI leaves to RTE, MRPC and STS-B.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from nomic_jax.data.task_lines import read_examples
from nomic_jax.fields import differing_fields, nearest
from nomic_jax.glue.grid import AFTER_MNLI, TASKS, Cell, cells
from nomic_jax.glue.table import Result, Row, as_json, markdown, rows_of
from nomic_jax.glue.tasks import GLUE, glue_stage
from nomic_jax.held_out import say
from nomic_jax.recipe import run
from nomic_jax.sources.source import source_name
from nomic_jax.storage import read_json, write_bytes, write_json
from nomic_jax.task_run import EVALUATION, MODEL, check_examples
from nomic_jax.training.task import TaskStage, TaskStart

CELL = "cell.json"  # of a cell that is done
MNLI = "mnli"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is trained, on what, and where."""

    model: str  # folder or hub id
    data: str  # folder of TASK.SPLIT.jsonl, or tfds:glue
    out: Path
    tasks: tuple[str, ...]
    rates: tuple[float, ...]
    batches: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int | None = None  # of every cell; None: ten epochs

    def __post_init__(self) -> None:
        """Refuse a grid that has no cell, or one twice, and tasks that are not GLUE's.

        Raises:
            ValueError: with the option.
        """
        for name in ("tasks", "rates", "batches", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"--{name} {' '.join(map(str, values))}: give at least one, and "
                    "none twice"
                )
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"--tasks {task}: {nearest(task, TASKS)}")
        if not all(rate > 0 for rate in self.rates):
            raise ValueError(f"--rates {self.rates}: each must be above 0")
        for name, least in (("batches", 1), ("seeds", 0)):
            if min(getattr(self, name)) < least:
                raise ValueError(f"--{name}: each must be at least {least}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps}: at least 1 is needed")
        if not self.data.startswith("tfds:") and not Path(self.data).is_dir():
            raise ValueError(
                f"--data {self.data} is no folder; give one of TASK.SPLIT.jsonl files, "
                "or tfds:glue"
            )


def sweep(plan: Sweep) -> list[Row]:
    """Train what is left of the grid, tell each cell's figure, and write the table.

    Raises:
        ValueError: a file is missing or not as it should be, or the folder holds a
            sweep of another model, data or number of steps.
        SystemExit: with status 75 after a signal; the same call goes on.
    """
    # MNLI goes before the tasks that need it; the others keep GLUE's order.
    tasks = [task for task in TASKS if task in plan.tasks]
    sizes = {task: _examples(plan, task) for task in tasks}
    results: list[Result] = []
    rows: list[Row] = []
    for task in tasks:
        grid = cells(task, plan.rates, plan.batches, plan.seeds)
        for number, cell in enumerate(grid, 1):
            result = _result(plan, cell, sizes[task])
            results.append(result)
            figures = ", ".join(f"{value:.4f}" for value in result.figures)
            say(
                f"[{number}/{len(grid)}] {task} {cell.name}: "
                f"{GLUE[task].metric} {figures}"
            )
            _prune(plan, cell, results)
        rows = rows_of(results)  # of the tasks so far
        write_json(plan.out / "glue.json", as_json(rows, results))
        write_bytes(plan.out / "glue.md", markdown(rows).encode())
    return rows


def _examples(plan: Sweep, task: str) -> int:
    """Read all files of a task, before anything is trained, and count the training's.

    Raises:
        ValueError: one is missing, or a line is not as it should be.
    """
    any_cell = Cell(task, plan.rates[0], plan.batches[0], plan.seeds[0])
    stage = _stage(plan, any_cell, TaskStart(model=plan.model), None)
    check_examples((stage,))
    return len(read_examples(stage.data.train, stage.head, stage.data))


def _stage(
    plan: Sweep, cell: Cell, start: TaskStart, examples: int | None
) -> TaskStage:
    return glue_stage(
        cell.task,
        data=plan.data,
        start=start,
        rate=cell.rate,
        batch=cell.batch,
        seed=cell.seed,
        steps=plan.steps,
        examples=examples,
    )


def _folder(plan: Sweep, cell: Cell) -> Path:
    return plan.out / cell.task / cell.name


def _result(plan: Sweep, cell: Cell, examples: int) -> Result:
    """Return a cell's figures, trained for if they are not there."""
    name, start = _start(plan, cell.task)
    stage = _stage(plan, cell, start, examples)
    folder = _folder(plan, cell)
    made_with = {
        "model": plan.model,
        "data": plan.data,
        "start": name,
        "steps": stage.train.steps,
    }
    if not (folder / CELL).exists():
        if name != plan.model:
            say(f"{cell.task} starts with what MNLI left: {name}")
        elif cell.task in AFTER_MNLI:
            say(f"{cell.task} starts with {name}: {plan.out} has no cell of MNLI")
        run((stage,), folder)
        jax.clear_caches()  # hundreds of cells would fill the memory with programs
        found = read_json(folder / cell.task / EVALUATION)
        metric = GLUE[cell.task].metric
        figures = [found[source_name(file)][metric] for file in stage.data.validation]
        write_json(folder / CELL, {"made_with": made_with, "figures": figures})
    done = read_json(folder / CELL)
    if changed := differing_fields(done["made_with"], made_with):
        raise ValueError(
            f"{folder} holds a cell of another sweep: {'; '.join(changed)}; use "
            f"another --out, or remove {folder.parent}"
        )
    return Result(cell, name, stage.train.steps, tuple(done["figures"]))


def _start(plan: Sweep, task: str) -> tuple[str, TaskStart]:
    """Choose what a task starts with, and name it."""
    best = _best_of_mnli(plan.out) if task in AFTER_MNLI else None
    if best is None:
        return plan.model, TaskStart(model=plan.model)
    return f"{MNLI}/{best.name}", TaskStart(model=str(best / MNLI / MODEL))


def _best_of_mnli(out: Path) -> Path | None:
    """Return the folder of the cell of MNLI with the highest accuracy, if any is."""
    done = sorted((out / MNLI).glob(f"*/{CELL}"))
    figures: dict[Path, Any] = {each.parent: read_json(each) for each in done}
    return max(figures, key=lambda each: figures[each]["figures"][0], default=None)


def _prune(plan: Sweep, cell: Cell, results: Sequence[Result]) -> None:
    """Remove what nothing needs of the cells that are done: gigabytes each."""
    folders = [_folder(plan, cell)]
    kept = None
    if cell.task == MNLI:
        kept = _best_of_mnli(plan.out)
        folders = [_folder(plan, r.cell) for r in results if r.cell.task == MNLI]
    for folder in folders:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.rmtree(folder / cell.task / "checkpoints", ignore_errors=True)
        if folder != kept:
            shutil.rmtree(folder / cell.task / MODEL, ignore_errors=True)
