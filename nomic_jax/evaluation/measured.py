"""What was measured with a model: the figures of each task at each length."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from nomic_jax.evaluation.measure import Figures


@dataclasses.dataclass(frozen=True)
class Measured:
    """The figures of a task, texts cut at a length."""

    task: str
    length: int  # in tokens
    seconds: float
    figures: tuple[Figures, ...]
    versions: Mapping[str, str]  # of the libraries it was measured with


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured with a model and options."""

    model: Mapping[str, Any]
    options: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]  # by name, as `described` says
    measured: tuple[Measured, ...] = ()

    def with_measured(self, measured: Measured) -> "Results":
        """Return the results with one task at one length more."""
        return dataclasses.replace(self, measured=(*self.measured, measured))

    def problems(self, tasks: Collection[str]) -> list[str]:
        """Say what is undefined of tasks, and why."""
        measured = [each for each in self.measured if each.task in tasks]
        figures = [figure for each in measured for figure in each.figures]
        return [each.problem for each in figures if each.problem is not None]

    def has(self, task: str, length: int) -> bool:
        """Whether a task was measured at a length."""
        return any((m.task, m.length) == (task, length) for m in self.measured)
