"""A sweep over GLUE: each cell of the grid is a run that is done once, then a table.

    OUT/TASK/CELL/cell.json      OUT/glue.json      OUT/glue.md, of all cells of OUT

A cell's file says what the cell is made with, and at its end the results. All cells of
a folder have one model and number of steps, and those of a task one start and data, so
that the table compares what can be compared. For each task it shows the best cell by
the median over seeds, and the spread. Models and checkpoints of a cell are removed when
its results are there, except those of MNLI's best cell, with which RTE, MRPC and STS-B
start.
"""

import dataclasses
import hashlib
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from nomic_jax.checkpoints.hub import folder_digest, resolve
from nomic_jax.config import JsonConfig, differing_fields
from nomic_jax.data.sources.source import source_name
from nomic_jax.downstream.examples import read_examples
from nomic_jax.downstream.glue import GLUE, glue_stage
from nomic_jax.downstream.glue_grid import (
    AFTER_MNLI,
    TASKS,
    Cell,
    Sweep,
    cells,
)
from nomic_jax.downstream.stage import TaskStage, TaskStart
from nomic_jax.pipeline.evaluate import say
from nomic_jax.pipeline.runner import run
from nomic_jax.pipeline.train_head import (
    EVALUATION,
    MODEL,
    check_examples,
    check_models,
)
from nomic_jax.storage import read_json, write_bytes, write_json

SIDES = {"mnli": ("mnli-m", "mnli-mm")}  # what a task's files are called in the table


@dataclasses.dataclass(frozen=True)
class Result:
    """What a cell came to."""

    cell: Cell
    start: str  # the model it started with, or the cell of MNLI that left it
    steps: int
    figures: tuple[float, ...]  # the task's metric on each of its files


@dataclasses.dataclass(frozen=True)
class Row:
    """A file's figures in a task's best cell."""

    task: str  # as the table names it: of MNLI m is matched, mm mismatched
    metric: str
    rate: float
    batch: int
    start: str
    seeds: int
    median: float
    mean: float
    deviation: float | None  # of the sample; None of a single seed
    lowest: float
    highest: float


def rows_of(results: Iterable[Result]) -> list[Row]:
    """Choose each task's rate and batch and sum up its seeds.

    The best is that of the highest median on the task's first file; of equal ones the
    lower rate, then the smaller batch.
    """
    by_task: dict[str, dict[tuple[float, int], list[Result]]] = {}
    for result in results:
        cell = result.cell
        grid = by_task.setdefault(cell.task, {})
        grid.setdefault((cell.rate, cell.batch), []).append(result)
    rows = []
    for task in (name for name in TASKS if name in by_task):
        grid = by_task[task]
        best = min(
            grid,
            key=lambda at: (-statistics.median(r.figures[0] for r in grid[at]), at),
        )
        rows += _summed(task, grid[best])
    return rows


def _summed(task: str, results: Sequence[Result]) -> Iterable[Row]:
    first = results[0]
    for number, name in enumerate(SIDES.get(task, (task,))):
        values = [result.figures[number] for result in results]
        yield Row(
            name,
            GLUE[task].metric,
            first.cell.rate,
            first.cell.batch,
            first.start,
            len(values),
            statistics.median(values),
            statistics.mean(values),
            statistics.stdev(values) if len(values) > 1 else None,
            min(values),
            max(values),
        )


def average(rows: Sequence[Row]) -> float | None:
    """Average the medians of the eight tasks, MNLI's matched; None where one lacks."""
    found = {row.task: row.median for row in rows}
    wanted = [SIDES.get(task, (task,))[0] for task in TASKS]
    if not set(wanted) <= set(found):
        return None
    return statistics.mean(found[name] for name in wanted)


def as_json(rows: Sequence[Row], results: Iterable[Result]) -> dict[str, Any]:
    """Return table and cells as plain values."""
    return {
        "table": [dataclasses.asdict(row) for row in rows],
        "average": average(rows),
        "cells": [dataclasses.asdict(result) for result in sorted(results, key=_order)],
    }


def _order(result: Result) -> tuple[int, Cell]:
    return TASKS.index(result.cell.task), result.cell


def markdown(rows: Sequence[Row]) -> str:
    """Write the table as Markdown."""
    lines = [
        "| task | metric | median | mean | deviation | range | seeds | rate | batch "
        "| start |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = "" if row.deviation is None else f"{row.deviation:.4f}"
        lines.append(
            f"| {row.task} | {row.metric} | {row.median:.4f} | {row.mean:.4f} "
            f"| {spread} | {row.lowest:.4f} to {row.highest:.4f} | {row.seeds} "
            f"| {row.rate!r} | {row.batch} | {row.start} |"
        )
    whole = average(rows)
    if whole is not None:
        lines.append(f"| average | | {whole:.4f} | | | | | | | |")
    return "\n".join(lines) + "\n"


CELL = "cell.json"


@dataclasses.dataclass(frozen=True)
class CellFile(JsonConfig):
    """A cell, what it is made with, and what it came to."""

    task: str
    rate: float
    batch: int
    seed: int
    steps: int
    fixed_steps: int | None  # that all cells were told to take; None: ten epochs
    model: str  # as it was given
    model_digest: str
    start: str  # the model, or the cell of MNLI that left it
    start_digest: str
    data: str  # as it was given
    data_digest: str  # of the examples of the task's files
    figures: tuple[float, ...] = ()  # on each of the task's files; none: not done
    left_digest: str = ""  # of the model that a cell of MNLI left

    def __post_init__(self) -> None:
        """Refuse a task that is not GLUE's, and figures of other files than its own.

        Raises:
            ValueError: with the field.
        """
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is none of GLUE's")
        if self.figures and len(self.figures) != len(GLUE[self.task].splits):
            raise ValueError(
                f"figures={self.figures} are not one of each of "
                f"{', '.join(GLUE[self.task].splits)}"
            )

    @property
    def cell(self) -> Cell:
        """The cell."""
        return Cell(self.task, self.rate, self.batch, self.seed)

    @property
    def result(self) -> Result:
        """What goes into the table."""
        return Result(self.cell, self.start, self.steps, self.figures)


def folder_of(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell."""
    return out / cell.task / cell.name


def write_cell(out: Path, made: CellFile) -> None:
    """Write a cell's file."""
    write_json(folder_of(out, made.cell) / CELL, made.to_json())


def read_cell(folder: Path) -> CellFile | None:
    """Read the file of a cell's folder; None where there is none.

    Raises:
        ValueError: it is damaged, or of another cell.
    """
    file = folder / CELL
    if not file.exists():
        return None
    try:
        found = read_json(file)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        made = CellFile.from_json(found)
        if folder.parts[-2:] != (made.task, made.cell.name):
            raise ValueError(f"it is of {made.task}/{made.cell.name}")
    except ValueError as error:
        raise ValueError(
            f"{file} is not what this version writes for a cell ({error}); remove "
            f"{folder}, and it is trained again"
        ) from error
    return made


def read_cells(out: Path, task: str = "*") -> list[CellFile]:
    """Read the cells of a sweep that are done, those of earlier commands too.

    Raises:
        ValueError: one is damaged.
    """
    files = sorted(out.glob(f"{task}/*/{CELL}"))
    found = [read_cell(file.parent) for file in files]
    return [made for made in found if made is not None and made.figures]


def check_same(
    out: Path, found: Iterable[CellFile], now: CellFile, fields: Iterable[str]
) -> None:
    """Refuse cells that were made with something else than a cell would be now.

    Args:
        out: of the sweep.
        found: cells that are there.
        now: the cell.
        fields: that must be the same.

    Raises:
        ValueError: with the first such cell's folder and all that differs.
    """
    fields = tuple(fields)
    for made in found:
        old, new = made.to_json(), now.to_json()
        if all(old[name] == new[name] for name in fields):
            continue
        # Digests tell apart what is at one place; the places are for the reader.
        places = [name.removesuffix("_digest") for name in fields]
        told = {name: (old[name], new[name]) for name in (*fields, *places)}
        changed = differing_fields(
            {name: old for name, (old, _) in told.items()},
            {name: new for name, (_, new) in told.items()},
        )
        raise ValueError(
            f"{folder_of(out, made.cell)} holds a cell of another sweep: "
            f"{'; '.join(changed)}; use another --out, or remove "
            f"{out / made.task}"
        )


CHECKPOINTS = "checkpoints"  # of a stage's folder
MNLI = "mnli"
OF_ALL = ("model_digest", "fixed_steps")  # what all cells of a folder share
OF_A_TASK = (*OF_ALL, "start_digest", "data_digest")  # and those of a task


@dataclasses.dataclass(frozen=True)
class _Files:
    """What the files of a task hold."""

    examples: int  # to train on
    digest: str


def sweep(plan: Sweep) -> list[Row]:
    """Train what is left of the grid, tell each cell's figure, and write the table.

    Returns:
        The table of all cells of the folder, those of earlier commands too.

    Raises:
        ValueError: a file is missing or not as it should be, or the folder holds a
            sweep of another model, data or number of steps.
        SystemExit: with status 75 after a signal; the same call goes on.
    """
    # MNLI goes before the tasks that need it; the others keep GLUE's order.
    tasks = [task for task in TASKS if task in plan.tasks]
    files = {task: _files(plan, task) for task in tasks}
    model = folder_digest(resolve(plan.model))
    grids = {task: cells(task, plan.rates, plan.batches, plan.seeds) for task in tasks}
    _check_folder(plan, grids, files, model)
    rows: list[Row] = []
    for task in tasks:
        for number, cell in enumerate(grids[task], 1):
            now, stage = _begun(plan, cell, files[task], model)
            made = _made(plan, now, stage)
            figures = ", ".join(f"{value:.4f}" for value in made.figures)
            say(
                f"[{number}/{len(grids[task])}] {task} {cell.name}: "
                f"{GLUE[task].metric} {figures}"
            )
            _prune(plan.out, cell)
        rows = _write_table(plan.out)
    return rows


def _check_folder(
    plan: Sweep,
    grids: Mapping[str, Sequence[Cell]],
    files: Mapping[str, _Files],
    model: str,
) -> None:
    """Refuse a folder of another sweep now, not when the tasks before are trained.

    Raises:
        ValueError: with a cell that does not belong to this one.
    """
    there = read_cells(plan.out)
    left = {*grids.get(MNLI, ())} - {made.cell for made in there}
    for task, grid in grids.items():
        now, _ = _begun(plan, grid[0], files[task], model)
        check_same(plan.out, there, now, OF_ALL)
        own = [made for made in there if made.task == task]
        if task not in AFTER_MNLI or not left:
            check_same(plan.out, own, now, OF_A_TASK)
            continue
        check_same(plan.out, own, now, (*OF_ALL, "data_digest"))
        if any(made.start_digest == model for made in own):
            raise ValueError(
                f"{plan.out / task} holds cells that started with {own[0].start}, and "
                f"now {MNLI} is to be trained, which {task} would start with; use "
                f"another --out, or remove {plan.out / task}"
            )


def _write_table(out: Path) -> list[Row]:
    results = [made.result for made in read_cells(out)]
    rows = rows_of(results)
    write_json(out / "glue.json", as_json(rows, results))
    write_bytes(out / "glue.md", markdown(rows).encode())
    return rows


def _files(plan: Sweep, task: str) -> _Files:
    """Read all files of a task, before anything is trained.

    Raises:
        ValueError: one is missing, a line is not as it should be, or the model is too
            short for the task.
    """
    any_cell = Cell(task, plan.rates[0], plan.batches[0], plan.seeds[0])
    stage = _stage(plan, any_cell, plan.model, None)
    check_examples((stage,))
    check_models((stage,))
    digest, counts = hashlib.blake2b(digest_size=16), []
    for file in (stage.data.train, *stage.data.validation):
        examples = read_examples(file, stage.head, stage.data)
        counts.append(len(examples))
        for example in examples:  # wherever they lie
            bare = dataclasses.replace(example, place="")
            digest.update(f"{bare!r}\n".encode())
        digest.update(b"\n")
    return _Files(counts[0], digest.hexdigest())


def _stage(plan: Sweep, cell: Cell, start: str, examples: int | None) -> TaskStage:
    return glue_stage(
        cell.task,
        data=plan.data,
        start=TaskStart(model=start),
        rate=cell.rate,
        batch=cell.batch,
        seed=cell.seed,
        steps=plan.steps,
        examples=examples,
    )


def _begun(
    plan: Sweep, cell: Cell, files: _Files, model: str
) -> tuple[CellFile, TaskStage]:
    """Say what a cell is made with, and what trains it.

    Args:
        plan: the sweep.
        cell: of its grid.
        files: of the task.
        model: digest of the plan's model.
    """
    name, place, digest = plan.model, plan.model, model
    best = _best_of_mnli(plan.out) if cell.task in AFTER_MNLI else None
    if best is not None:
        folder = folder_of(plan.out, best.cell)
        name, place = f"{MNLI}/{best.cell.name}", str(folder / MNLI / MODEL)
        digest = best.left_digest
    stage = _stage(plan, cell, place, files.examples)
    return (
        CellFile(
            **dataclasses.asdict(cell),
            steps=stage.train.steps,
            fixed_steps=plan.steps,
            model=plan.model,
            model_digest=model,
            start=name,
            start_digest=digest,
            data=plan.data,
            data_digest=files.digest,
        ),
        stage,
    )


def _made(plan: Sweep, now: CellFile, stage: TaskStage) -> CellFile:
    """Return a cell with its figures, trained for if they are not there."""
    cell, folder = now.cell, folder_of(plan.out, now.cell)
    done = [made for made in read_cells(plan.out, cell.task) if made.cell != cell]
    check_same(plan.out, done, now, OF_A_TASK)
    found = read_cell(folder)
    # A cell that failed before its first checkpoint is as good as new.
    if found and (found.figures or (folder / cell.task / CHECKPOINTS).exists()):
        check_same(plan.out, [found], now, OF_A_TASK)
        if found.figures:
            return found
    if now.start != plan.model:
        say(f"{cell.task} starts with what MNLI left: {now.start}")
    elif cell.task in AFTER_MNLI:
        say(f"{cell.task} starts with {now.start}: {plan.out} has no cell of MNLI")
    write_cell(plan.out, now)
    run((stage,), folder)
    jax.clear_caches()  # hundreds of cells would fill the memory with programs
    left = folder / cell.task
    measured = read_json(left / EVALUATION)
    metric = GLUE[cell.task].metric
    done = dataclasses.replace(
        now,
        figures=tuple(
            measured[source_name(file)][metric] for file in stage.data.validation
        ),
        left_digest=folder_digest(left / MODEL) if cell.task == MNLI else "",
    )
    write_cell(plan.out, done)
    return done


def _best_of_mnli(out: Path) -> CellFile | None:
    """Return the cell of MNLI with the highest matched accuracy, if any is done."""
    return max(read_cells(out, MNLI), key=lambda made: made.figures[0], default=None)


def _prune(out: Path, cell: Cell) -> None:
    """Remove what nothing needs of the cells that are done: gigabytes each.

    Of MNLI all cells are looked at: one may be the best no longer.
    """
    kept, finished = None, [cell]
    if cell.task == MNLI:
        best = _best_of_mnli(out)
        kept = best.cell if best else None
        finished = [made.cell for made in read_cells(out, MNLI)]
    for each in finished:
        folder = folder_of(out, each)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        shutil.rmtree(folder / each.task / CHECKPOINTS, ignore_errors=True)
        if each != kept:
            shutil.rmtree(folder / each.task / MODEL, ignore_errors=True)
