"""Plots of an evaluation: score against dimension, and against length."""

import io
from collections.abc import Mapping, Sequence

from nomic_jax.evaluation.figures_folder import Results
from nomic_jax.evaluation.metrics import METRICS
from nomic_jax.storage import join, write_bytes

FORMATS = ("svg", "png")

Curve = Mapping[int, float]  # score by dimension or by length


def draw(results: Results, folder: str) -> list[str]:
    """Draw what varies: score_by_dimension, score_by_length, each as .svg and .png.

    Dimensions are compared at the greatest length, lengths at the greatest dimension.

    Returns:
        The files' places.
    """
    written = []
    for name, axis, curves in (
        ("score_by_dimension", "dimensions", by_dimension(results)),
        ("score_by_length", "tokens", by_length(results)),
    ):
        if not any(len(curve) > 1 for curve in curves.values()):
            continue
        for kind in FORMATS:
            place = join(folder, f"{name}.{kind}")
            write_bytes(place, _drawing(curves, axis, kind, name))
            written.append(place)
    return written


def by_dimension(results: Results) -> dict[str, Curve]:
    """Return each task's main metric by dimension, a curve for each precision."""
    curves: dict[str, dict[int, float]] = {}
    longest = {m.task: 0 for m in results.measured}
    for measured in results.measured:
        longest[measured.task] = max(longest[measured.task], measured.length)
    for measured in results.measured:
        if measured.length != longest[measured.task]:
            continue
        main = results.tasks[measured.task]["main"]
        for each in measured.figures:
            label = _label(measured.task, main, each.precision)
            curves.setdefault(label, {})[each.dim] = each.metrics[main]
    return {label: dict(sorted(curve.items())) for label, curve in curves.items()}


def by_length(results: Results) -> dict[str, Curve]:
    """Return each task's main metric by length, a curve for each precision."""
    curves: dict[str, dict[int, float]] = {}
    for measured in results.measured:
        main = results.tasks[measured.task]["main"]
        widest = max(each.dim for each in measured.figures)
        for each in measured.figures:
            if each.dim == widest:
                label = _label(measured.task, main, each.precision)
                curves.setdefault(label, {})[measured.length] = each.metrics[main]
    return {label: dict(sorted(curve.items())) for label, curve in curves.items()}


def _label(task: str, metric: str, precision: str) -> str:
    written = METRICS.get(metric, metric.replace("_", " "))
    return f"{task}, {written}" + ("" if precision == "float32" else f", {precision}")


def _drawing(curves: Mapping[str, Curve], axis: str, kind: str, name: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    ticks: Sequence[int] = sorted({x for curve in curves.values() for x in curve})
    file = io.BytesIO()
    # Without a name of its own, an SVG's element names would be random.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for label, curve in curves.items():
            style = {"int8": "--", "binary": ":"}.get(label.rpartition(", ")[2], "-")
            axes.plot([*curve], [*curve.values()], style, marker="o", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(axis)
        axes.set_ylabel("score")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(fontsize="small")
        figure.savefig(
            file, format=kind, metadata={"Date": None} if kind == "svg" else None
        )
    return file.getvalue()
