"""The results of an evaluation: its folder, its tables and its plots.

DIR/results.json holds the model, the options, and for each task, length, dimension and
precision all metrics; DIR/results.md its tables; plots show score against dimension and
against length. Every task at every length is written as soon as it is measured, so that
the same command resumes.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nomic_jax.config import EmbeddingConfig, differing_fields
from nomic_jax.evaluation.kinds.registry import KINDS, Task
from nomic_jax.evaluation.kinds.retrieval import METRICS
from nomic_jax.storage import exists, join, read_bytes, read_json, write_bytes


@dataclasses.dataclass(frozen=True)
class Figures:
    """How good embeddings of a dimension and precision are: values by metric."""

    dim: int
    precision: str
    metrics: Mapping[str, float]  # none where there is a problem
    problem: str | None = None  # that leaves them undefined


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


Place = tuple[int, int, str]  # length, dimension, precision
Values = Mapping[str, float]  # by metric


def tables(results: Results, tasks: Collection[str] | None = None) -> str:
    """Write a table for each kind of metrics, a line for each measurement.

    Kinds of several tasks have their mean below, wherever all of these were measured.

    Args:
        results: to write.
        tasks: names of those to write; None: all.
    """
    found: dict[str, dict[Place, Values]] = {}
    problems = []
    for measured in results.measured:
        if tasks is not None and measured.task not in tasks:
            continue
        lines = found.setdefault(measured.task, {})
        for each in measured.figures:
            if each.problem is None:
                place = (measured.length, each.dim, each.precision)
                lines[place] = each.metrics
            else:
                problems.append(f"Undefined: {each.problem}, {measured.length} tokens")
    rows = [(name, *line) for name in found for line in found[name].items()]
    kinds: dict[str, list[str]] = {}
    for name in found:
        kinds.setdefault(results.tasks[name]["kind"], []).append(name)
    for kind, names in kinds.items():
        if len(names) > 1:
            label = f"mean of {len(names)} {kind.replace('_', ' ')}"
            each = [found[name] for name in names]
            rows += [(label, *line) for line in _means(each)]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, (length, dim, precision), metrics in rows:
        values = " | ".join(f"{value:.4f}" for value in metrics.values())
        line = f"| {name} | {length} | {dim} | {precision} | {values} |"
        groups.setdefault(tuple(metrics), []).append(line)
    written = [_table(metrics, lines) for metrics, lines in groups.items()]
    return "\n\n".join([*written, *problems])


def _means(tasks: Sequence[Mapping[Place, Values]]) -> Iterator[tuple[Place, Values]]:
    """Average the metrics that tasks have in common."""
    for place, values in tasks[0].items():
        if all(place in task for task in tasks):
            shared = [m for m in values if all(m in task[place] for task in tasks)]
            yield (
                place,
                {m: float(np.mean([task[place][m] for task in tasks])) for m in shared},
            )


def _table(metrics: Sequence[str], lines: Sequence[str]) -> str:
    names = " | ".join(METRICS.get(m, m.replace("_", " ")) for m in metrics)
    rule = "|---|---|---|---|" + "---|" * len(metrics)
    header = f"| task | tokens | dimension | precision | {names} |"
    return "\n".join([header, rule, *lines])


RESULTS, TABLES = "results.json", "results.md"
PLACES = ("source", "place")  # which may change: digests say what is there


def described(task: Task, config: EmbeddingConfig) -> dict[str, Any]:
    """Say of a task what it is, with a digest of its content.

    Args:
        task: as `open_tasks` reads it.
        config: of an embedder that knows the prompts of all tasks.
    """
    content = hashlib.blake2b(digest_size=16)
    for piece in _pieces(task.data):
        content.update(piece.encode())
    known = config.prompts
    return {
        "kind": task.kind,
        "place": task.place,
        "main": task.main,
        "counts": dict(task.counts),
        "prefixes": [known[side.prompt_name] for side in task.sides],
        "unit_length": KINDS[task.kind].unit_length,
        "digest": content.hexdigest(),
    }


def _pieces(value: Any) -> Iterator[str]:
    """Write a task's data in pieces: a corpus may fill the memory, once."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield field.name
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _pieces(list(value.items()))
    elif isinstance(value, Collection) and not isinstance(value, str):
        yield f"[{len(value)}"
        for each in sorted(value) if isinstance(value, frozenset) else value:
            yield from _pieces(each)
    else:
        yield f",{value!r}"


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
    """Write the figures and their tables, unless they are there."""
    values = dataclasses.asdict(results)
    for name, text in (
        (TABLES, tables(results)),  # first: what is in the other is not measured again
        (RESULTS, json.dumps(values, indent=2, ensure_ascii=False)),
    ):
        write_changed(join(folder, name), (text + "\n").encode())


def write_changed(place: str, content: bytes) -> None:
    """Write a file, unless it holds just that."""
    if not exists(place) or read_bytes(place) != content:
        write_bytes(place, content)


def _read(place: str) -> Results:
    values = read_json(place)
    try:
        measured = tuple(
            Measured(
                m["task"],
                m["length"],
                m["seconds"],
                tuple(Figures(**each) for each in m["figures"]),
                m["versions"],
            )
            for m in values.pop("measured")
        )
        return Results(**values, measured=measured)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{place} is not a file of results: {error!r}; give another --out"
        ) from error


FORMATS = ("svg", "png")
DASHES = {"float32": "-", "int8": "--", "binary": ":"}
Curve = Mapping[int, float]  # score by dimension or by length
Curves = Mapping[tuple[str, str], Curve]  # by task and precision


def draw(results: Results, folder: str) -> list[str]:
    """Draw what varies: score_by_dimension, score_by_length, each as .svg and .png.

    Dimensions are compared at the greatest length, lengths at the greatest dimension.
    A file that shows just that is left as it is.

    Returns:
        The files' places.
    """
    places = []
    for name, axis, curves in (
        ("score_by_dimension", "dimensions", by_dimension(results)),
        ("score_by_length", "tokens", by_length(results)),
    ):
        if not any(len(curve) > 1 for curve in curves.values()):
            continue
        for kind in FORMATS:
            places.append(join(folder, f"{name}.{kind}"))
            write_changed(places[-1], _drawing(results, curves, axis, kind, name))
    return places


def by_dimension(results: Results) -> Curves:
    """Return each task's main metric by dimension, a curve for each precision."""
    longest = {m.task: 0 for m in results.measured}
    for measured in results.measured:
        longest[measured.task] = max(longest[measured.task], measured.length)
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for task, precision, length, dim, value in _points(results):
        if length == longest[task]:
            curves.setdefault((task, precision), {})[dim] = value
    return {label: dict(sorted(curve.items())) for label, curve in curves.items()}


def by_length(results: Results) -> Curves:
    """Return each task's main metric by length, a curve for each precision."""
    widest = max((dim for *_, dim, _ in _points(results)), default=0)
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for task, precision, length, dim, value in _points(results):
        if dim == widest:
            curves.setdefault((task, precision), {})[length] = value
    return {label: dict(sorted(curve.items())) for label, curve in curves.items()}


def _points(results: Results) -> list[tuple[str, str, int, int, float]]:
    """Return task, precision, length, dimension and main metric where it is defined."""
    return [
        (
            measured.task,
            each.precision,
            measured.length,
            each.dim,
            each.metrics[results.tasks[measured.task]["main"]],
        )
        for measured in results.measured
        for each in measured.figures
        if each.problem is None
    ]


def _drawing(
    results: Results, curves: Curves, axis: str, kind: str, name: str
) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    ticks: Sequence[int] = sorted({x for curve in curves.values() for x in curve})
    panels: dict[str, dict[tuple[str, str], Curve]] = {}
    for label, curve in curves.items():
        panels.setdefault(results.tasks[label[0]]["kind"], {})[label] = curve
    file = io.BytesIO()
    # Without a name of its own, an SVG's element names would be random.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (panel, drawn) in zip(every, panels.items(), strict=True):
            tasks = list(dict.fromkeys(task for task, _ in drawn))
            for (task, precision), curve in drawn.items():
                axes.plot(
                    [*curve],
                    [*curve.values()],
                    DASHES[precision],
                    color=f"C{tasks.index(task)}",
                    marker="o",
                    label=task if precision == "float32" else f"{task}, {precision}",
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_title(panel.replace("_", " "))
            axes.set_xlabel(axis)
            main = results.tasks[tasks[0]]["main"]
            axes.set_ylabel(METRICS.get(main, main.replace("_", " ")))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.2)
            axes.legend(fontsize="small")
        figure.savefig(
            file, format=kind, metadata={"Date": None} if kind == "svg" else None
        )
    return file.getvalue()
