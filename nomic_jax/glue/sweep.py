"""The sweep over GLUE's grid: each cell a run of its own, done once, its figures kept.

    OUT/TASK/CELL/cell.json      OUT/glue.json      OUT/glue.md, of all cells of OUT

A cell's models and checkpoints are removed when its figures are there, but for those
that the best cell of MNLI leaves to RTE, MRPC and STS-B.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from nomic_jax.checkpoints.folder_digest import folder_digest
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.data.task_lines import read_examples
from nomic_jax.glue.cell_file import (
    CellFile,
    check_same,
    folder_of,
    read_cell,
    read_cells,
    write_cell,
)
from nomic_jax.glue.grid import AFTER_MNLI, TASKS, Cell, Sweep, cells
from nomic_jax.glue.table import Row, as_json, markdown, rows_of
from nomic_jax.glue.tasks import GLUE, glue_stage
from nomic_jax.held_out import say
from nomic_jax.preflight import check_models
from nomic_jax.recipe import run
from nomic_jax.sources.source import source_name
from nomic_jax.storage import read_json, write_bytes, write_json
from nomic_jax.task_run import EVALUATION, MODEL, check_examples
from nomic_jax.training.task import TaskStage, TaskStart

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
