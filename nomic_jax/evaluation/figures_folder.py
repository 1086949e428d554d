"""What an evaluation leaves in its folder, and how it goes on where it was stopped.

DIR/results.json holds the model, the options, the versions, and for each task, length,
dimension and precision all metrics; DIR/results.md its tables; the plots are drawn of
it. Every task at every length is written as soon as it is measured.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from nomic_jax.config import EmbeddingConfig
from nomic_jax.evaluation.kinds import KINDS, Task
from nomic_jax.evaluation.measure import Figures
from nomic_jax.evaluation.metrics import METRICS
from nomic_jax.fields import differing_fields
from nomic_jax.storage import exists, join, read_json, write_bytes, write_json

RESULTS, TABLES = "results.json", "results.md"
PLACES = ("source", "place")  # which may change: digests say what lies there


@dataclasses.dataclass(frozen=True)
class Measured:
    """The figures of a task, texts cut at a length."""

    task: str
    length: int  # in tokens
    seconds: float
    figures: tuple[Figures, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured with a model and options."""

    model: Mapping[str, Any]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]]  # by name, as `described` says
    measured: tuple[Measured, ...] = ()

    def with_measured(self, measured: Measured) -> "Results":
        """Return the results with one task at one length more."""
        return dataclasses.replace(self, measured=(*self.measured, measured))

    def has(self, task: str, length: int) -> bool:
        """Whether a task was measured at a length."""
        return any((m.task, m.length) == (task, length) for m in self.measured)


def described(task: Task, config: EmbeddingConfig) -> dict[str, Any]:
    """Say of a task what it is, with a digest of its content.

    Args:
        task: as `open_tasks` reads it.
        config: of the model, which has the prefixes.

    Raises:
        ValueError: the model has no such prompt as the task asks for.
    """
    content = hashlib.blake2b(repr(task.data).encode(), digest_size=16)
    return {
        "kind": task.kind,
        "place": task.place,
        "main": task.main,
        "counts": dict(task.counts),
        "prefixes": [config.prompt(side.prompt) for side in task.sides],
        "unit_length": KINDS[task.kind].unit_length,
        "digest": content.hexdigest(),
    }


def resumed(results: Results, folder: str) -> Results:
    """Add what a folder holds of an earlier run of the same model and options.

    Raises:
        ValueError: it holds another model's, other options' or another task's figures
            under the same name; the fields that differ are named.
    """
    place = join(folder, RESULTS)
    if not exists(place):
        return results
    earlier = _read(place)
    known = {
        name: earlier.tasks.get(name, task) for name, task in results.tasks.items()
    }
    differing = differing_fields(
        _compared(earlier.model, earlier.options, known),
        _compared(results.model, results.options, results.tasks),
    )
    if differing:
        raise ValueError(
            f"{place} is of another evaluation: {'; '.join(differing)}; give another "
            "--out, or the same model and options"
        )
    return dataclasses.replace(
        results,
        tasks={**earlier.tasks, **results.tasks},
        measured=earlier.measured,
    )


def _compared(
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    tasks: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    def placeless(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in PLACES}

    return {
        "model": placeless(model),
        "options": options,
        "tasks": {name: placeless(task) for name, task in tasks.items()},
    }


def write(results: Results, folder: str) -> None:
    """Write the figures and their tables."""
    write_json(join(folder, RESULTS), dataclasses.asdict(results))
    write_bytes(join(folder, TABLES), (tables(results) + "\n").encode())


def _read(place: str) -> Results:
    values = read_json(place)
    try:
        measured = tuple(
            Measured(
                m["task"],
                m["length"],
                m["seconds"],
                tuple(Figures(**each) for each in m["figures"]),
            )
            for m in values.pop("measured")
        )
        return Results(**values, measured=measured)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{place} is no file of results: {error!r}; give another --out"
        ) from error


def tables(results: Results, tasks: Sequence[str] | None = None) -> str:
    """Write a Markdown table for each kind of metrics, a line for each measurement.

    Args:
        results: to write.
        tasks: names of those to write; None: all.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for measured in results.measured:
        if tasks is not None and measured.task not in tasks:
            continue
        for each in measured.figures:
            values = " | ".join(f"{value:.4f}" for value in each.metrics.values())
            groups.setdefault(tuple(each.metrics), []).append(
                f"| {measured.task} | {measured.length} | {each.dim} "
                f"| {each.precision} | {values} |"
            )
    written = []
    for metrics, lines in groups.items():
        names = " | ".join(METRICS.get(m, m.replace("_", " ")) for m in metrics)
        rule = "|---|---|---|---|" + "---|" * len(metrics)
        header = f"| task | tokens | dimension | precision | {names} |"
        written.append("\n".join([header, rule, *lines]))
    return "\n\n".join(written)
