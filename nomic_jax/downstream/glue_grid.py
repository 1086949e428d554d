"""The published grid of GLUE's hyperparameters, a cell of it, and a part to sweep.

Nomic Embed, arXiv:2402.01613, and its code of February 2024 where the paper is silent.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nomic_jax.config import did_you_mean

TASKS = ("cola", "sst2", "qqp", "qnli", "mnli", "rte", "mrpc", "stsb")
AFTER_MNLI = ("rte", "mrpc", "stsb")  # which start with what MNLI left
RATES = (1e-5, 2e-5, 3e-5)
BATCHES = (16, 32)
SEEDS = (42, 19, 17, 717, 10536)
EPOCHS = 10


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One training of a task."""

    task: str
    rate: float  # peak of the learning rate
    batch: int  # examples of a step
    seed: int

    @property
    def name(self) -> str:
        """What its folder within the task's is called."""
        return f"rate_{self.rate!r}_batch_{self.batch}_seed_{self.seed}"


def cells(
    task: str, rates: Sequence[float], batches: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """List the cells of a task: of each rate and batch all seeds, one after another."""
    return [
        Cell(task, rate, batch, seed)
        for rate in rates
        for batch in batches
        for seed in seeds
    ]


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
                raise ValueError(f"--tasks {task}: {did_you_mean(task, TASKS)}")
        if not all(rate > 0 for rate in self.rates):
            raise ValueError(f"--rates {self.rates}: each must be above 0")
        for name, least in (("batches", 1), ("seeds", 0)):
            if min(getattr(self, name)) < least:
                raise ValueError(f"--{name}: each must be at least {least}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps}: at least 1 is needed")
        if not self.data.startswith("tfds:") and not Path(self.data).is_dir():
            raise ValueError(
                f"--data {self.data} is not a folder; give one of TASK.SPLIT.jsonl "
                "files, or tfds:glue"
            )
