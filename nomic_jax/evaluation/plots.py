"""Plots of an evaluation: score against dimension, and against length.

A panel for each kind of task, a colour for each task, a dash for each precision.
"""

import io
from collections.abc import Mapping, Sequence

from nomic_jax.evaluation.figures_folder import write_changed
from nomic_jax.evaluation.measured import Results
from nomic_jax.evaluation.metrics import METRICS
from nomic_jax.storage import join

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
