"""The published grid of GLUE: tasks, rates, batches and seeds, and a cell of it.

Nomic Embed, arXiv:2402.01613, and its code of February 2024 where the paper is silent.
"""

import dataclasses
from collections.abc import Sequence

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
