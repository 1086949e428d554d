"""GLUE's table: which cell is the best, and how its seeds spread."""

import pytest

from nomic_jax.downstream.glue_grid import TASKS, Cell
from nomic_jax.pipeline.glue import Result, as_json, average, markdown, rows_of


def result(task, rate, batch, seed, *figures):
    return Result(Cell(task, rate, batch, seed), "model", 10, figures)


def test_the_best_cell_is_that_of_the_highest_median_and_its_seeds_are_summed_up():
    # The first has the higher mean and the highest figure, the second the median.
    results = [
        result("cola", 1e-5, 16, seed, figure)
        for seed, figure in enumerate((0.1, 0.4, 0.9))
    ]
    results += [
        result("cola", 2e-5, 16, seed, figure)
        for seed, figure in enumerate((0.5, 0.3, 0.45))
    ]
    (row,) = rows_of(results)
    assert (row.metric, row.rate, row.batch, row.seeds) == ("matthews", 2e-5, 16, 3)
    assert (row.median, row.lowest, row.highest) == (0.45, 0.3, 0.5)
    assert row.mean == pytest.approx(1.25 / 3)
    # Squared differences from the mean, over two.
    assert row.deviation == pytest.approx(
        (sum((x - 1.25 / 3) ** 2 for x in (0.5, 0.3, 0.45)) / 2) ** 0.5
    )


def test_both_files_of_mnli_are_of_the_cell_that_the_matched_one_chose():
    results = [
        result("mnli", 3e-5, 16, 0, 0.8, 0.70),
        result("mnli", 1e-5, 32, 0, 0.7, 0.90),
        result("mnli", 2e-5, 32, 0, 0.8, 0.75),  # equal: the lower rate
    ]
    found = {row.task: (row.rate, row.median) for row in rows_of(results)}
    assert found == {"mnli-m": (2e-5, 0.8), "mnli-mm": (2e-5, 0.75)}


def test_the_average_is_of_all_eight_tasks_mnli_matched():
    results = [
        result(task, 1e-5, 16, 0, n / 10, 1.0) for n, task in enumerate(TASKS, 1)
    ]
    rows = rows_of(results)
    assert average(rows) == pytest.approx(0.45)
    assert average(rows_of(results[:-1])) is None
    assert [row.task for row in rows][4:6] == ["mnli-m", "mnli-mm"]
    lines = markdown(rows).splitlines()
    assert lines[2].startswith("| cola | matthews | 0.1000 | 0.1000 |  | 0.1000 to ")
    assert lines[-1].startswith("| average | | 0.4500 |")
    assert as_json(rows, results)["cells"][0]["cell"] == {
        "task": "cola",
        "rate": 1e-5,
        "batch": 16,
        "seed": 0,
    }
