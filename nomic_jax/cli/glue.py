"""The command `nomic-jax glue`."""

import dataclasses
from pathlib import Path

from nomic_jax.cli.options import Model, Number
from nomic_jax.downstream.glue_grid import (
    BATCHES,
    RATES,
    SEEDS,
    TASKS,
    Sweep,
)


@dataclasses.dataclass(frozen=True)
class Glue:
    """Fine-tune a model on GLUE for each cell of a grid, and print the table.

    Of each task the rate and batch with the best median over seeds are reported. RTE,
    MRPC and STS-B start with the best model of MNLI, if OUT has one. A cell that is
    done is not trained again, so the same command goes on where it was stopped. The
    table is of all cells of OUT, so the grid can be gone through in several commands.
    """

    model: Model  # folder or hub id of an encoder
    data: str  # folder of TASK.SPLIT.jsonl files, or tfds:glue
    out: Path  # folder of the cells and of glue.json and glue.md
    tasks: tuple[str, ...] = TASKS  # some of these
    rates: tuple[float, ...] = RATES  # peaks of the learning rate
    batches: tuple[int, ...] = BATCHES  # examples of a step
    seeds: tuple[int, ...] = SEEDS  # of order, dropout and the head
    steps: Number = None  # of every cell; None: ten epochs of the task's file


def glue(options: Glue) -> int:
    """Run `nomic-jax glue`: a line for each cell on standard error, then the table.

    Raises:
        ValueError: an option, a file or the folder is wrong.
    """
    from nomic_jax.pipeline.glue import markdown, sweep

    print(markdown(sweep(Sweep(**vars(options)))), end="", flush=True)
    return 0
