"""GLUE's table: of each task its best cell by the median over seeds, and the spread."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from nomic_jax.glue.grid import TASKS, Cell
from nomic_jax.glue.tasks import GLUE

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
