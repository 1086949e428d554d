"""A run's report: one HTML file with its curves, its results and what it retrieves.

The file needs nothing else: styles and drawings are inside, there is no script.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from nomic_jax.evaluation.metrics import METRICS
from nomic_jax.storage import write_bytes

SHOWN = ("ndcg@10", "recall@10")  # the metrics a table has room for
CURVE_POINTS = 1000  # drawn of each curve, to keep the file small
EXCERPT = 400  # characters shown of a text


@dataclasses.dataclass(frozen=True)
class StageCurve:
    """What a training stage logged."""

    name: str
    steps: Sequence[int]  # optimizer steps done
    loss: Sequence[float]
    learning_rate: Sequence[float]


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """One model's results: metric values by task name, then by metric name."""

    label: str
    tasks: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Hit:
    """A document that a model found."""

    document: str
    score: float
    right: bool  # answers the query


@dataclasses.dataclass(frozen=True)
class Example:
    """A query, its true document, and what models found for it, best first."""

    query: str
    document: str
    found: Mapping[str, Sequence[Hit]]  # by the model's label


def format_table(rows: Sequence[EvaluationRow]) -> str:
    """Write the evaluation as plain text for a terminal, a line a model.

    A value that was not measured is a dash.
    """
    columns = _columns(rows)
    cells = [["", *(METRICS[m] for _, m in columns)]]
    cells += [[row.label, *(_value(row, *c) for c in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in cells
    ]
    return "\n".join([_task_line(columns, widths), *lines])


def write_report(
    path: str | Path,
    *,
    title: str,
    curves: Sequence[StageCurve] = (),
    rows: Sequence[EvaluationRow] = (),
    examples: Sequence[Example] = (),
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the report, whole or not at all.

    Args:
        path: the HTML file, or its URL; one that exists is replaced.
        title: of the page.
        curves: of the training stages, in their order.
        rows: of the evaluation table, in their order.
        examples: of what is retrieved.
        facts: what else to say of the run, name to value.

    Raises:
        ValueError: a curve's lists differ in length.
    """
    page = _page(title, curves, rows, examples, facts or {})
    write_bytes(path, page.encode())


def _page(
    title: str,
    curves: Sequence[StageCurve],
    rows: Sequence[EvaluationRow],
    examples: Sequence[Example],
    facts: Mapping[str, str],
) -> str:
    """Put the sections together, leaving out those that have no content."""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    sections = [f"<h1>{escape(title)}</h1>"]
    if facts:
        items = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
        sections.append(f'<dl class="facts">{"".join(items)}</dl>')
    if rows:
        sections += ["<h2>Retrieval</h2>", _table(rows)]
    if curves:
        sections += ["<h2>Training</h2>", *map(_curves, curves)]
    if examples:
        sections += ["<h2>What is retrieved</h2>", *map(_example, examples)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _columns(rows: Sequence[EvaluationRow]) -> list[tuple[str, str]]:
    """List (task, metric) of each column, tasks in order of first appearance."""
    tasks = dict.fromkeys(task for row in rows for task in row.tasks)
    return [(task, metric) for task in tasks for metric in SHOWN]


def _value(row: EvaluationRow, task: str, metric: str) -> str:
    """Write one cell."""
    value = row.tasks.get(task, {}).get(metric)
    return "-" if value is None else f"{value:.3f}"


def _task_line(columns: Sequence[tuple[str, str]], widths: Sequence[int]) -> str:
    """Write the names of the tasks over the columns they have."""
    line = ""
    for place in range(0, len(columns), len(SHOWN)):
        start = sum(widths[: place + 1]) + 2 * (place + 1)
        # A name longer than its columns pushes the next one on, and stays readable.
        line = line.ljust(start) if len(line) < start else line + "  "
        line += columns[place][0]
    return line


def _table(rows: Sequence[EvaluationRow]) -> str:
    """Draw the evaluation; the best value of each column stands out."""
    columns = _columns(rows)
    best = {c: max(_value(row, *c) for row in rows) for c in columns}
    tasks = "".join(
        f'<th colspan="{len(SHOWN)}" scope="colgroup">{escape(task)}</th>'
        for task in dict.fromkeys(task for task, _ in columns)
    )
    names = "".join(f'<th scope="col">{METRICS[m]}</th>' for _, m in columns)
    lines = []
    for row in rows:
        values = ((_value(row, *c), best[c]) for c in columns)
        cells = "".join(
            f"<td>{f'<b>{v}</b>' if v == top != '-' else v}</td>" for v, top in values
        )
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><td></td>{tasks}</tr>'
        f"<tr><td></td>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(curve: StageCurve) -> str:
    """Draw a stage's loss and learning rate.

    Raises:
        ValueError: the lists differ in length.
    """
    if not len(curve.steps) == len(curve.loss) == len(curve.learning_rate):
        raise ValueError(
            f"stage {curve.name!r} has {len(curve.steps)} steps, {len(curve.loss)} "
            f"losses and {len(curve.learning_rate)} learning rates; as many are needed"
        )
    if not curve.steps:
        return f"<h3>{escape(curve.name)}</h3><p>No step was logged.</p>"
    drawings = "".join(
        f"<figure>{_drawing(curve.steps, values, f'{curve.name} {name}')}"
        f"<figcaption>{name}, by optimizer step</figcaption></figure>"
        for name, values in (
            ("loss", curve.loss),
            ("learning rate", curve.learning_rate),
        )
    )
    last = f"{curve.steps[-1]:,} steps, last loss {curve.loss[-1]:.3f}"
    return (
        f'<h3>{escape(curve.name)} <span class="quiet">{last}</span></h3>'
        f'<div class="curves">{drawings}</div>'
    )


def _drawing(steps: Sequence[int], values: Sequence[float], name: str) -> str:
    """Draw one curve as inline SVG in the colours of the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    keep = np.unique(
        np.linspace(0, len(steps) - 1, CURVE_POINTS).round().astype(np.int64)
    )
    text, accent = "#010203", "#040506"  # stand-ins, replaced by the page's colours
    file = io.StringIO()
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # letters stay letters
            "svg.hashsalt": name,  # on one page, drawings' element names must differ
            "font.family": "sans-serif",
            "font.size": 11,
            "text.color": text,
            "axes.edgecolor": text,
            "xtick.color": text,
            "ytick.color": text,
        }
    ):
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        marker = "o" if len(keep) == 1 else None
        x, y = np.asarray(steps)[keep], np.asarray(values)[keep]
        axes.plot(x, y, color=accent, marker=marker)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=text, alpha=0.15)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(text, "currentColor")
    label = f'<svg role="img" aria-label="{escape(name)}"'
    return svg.replace(accent, "var(--accent)").replace("<svg", label, 1)


def _example(example: Example) -> str:
    """Show a query, its true document, and each model's finds."""
    lists = []
    for label, hits in example.found.items():
        items = "".join(
            f'<li class="{"right" if hit.right else "wrong"}">'
            f'<span class="score">{hit.score:.3f} '
            f"{'✓ the right one' if hit.right else '✗'}</span>"
            f"{_excerpt(hit.document)}</li>"
            for hit in hits
        )
        lists.append(f"<section><h4>{escape(label)}</h4><ol>{items}</ol></section>")
    return (
        f'<article><h3 class="query">{_excerpt(example.query)}</h3>'
        f'<p class="quiet">its document</p>{_excerpt(example.document)}'
        f'<div class="found">{"".join(lists)}</div></article>'
    )


def _excerpt(text: str) -> str:
    """Escape a text and cut it to what a page can show."""
    text = text.strip()
    cut = text if len(text) <= EXCERPT else text[: EXCERPT - 1].rstrip() + "…"
    return f'<span class="text">{escape(cut)}</span>'
