"""What a run leaves at its end: the exported model, and a report in one HTML file.

    DIR/model/   DIR/report.html

The report shows curves, results and what is retrieved. It needs no other file: styles
and drawings are inside, and there is no script.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.sources.pairs import PairSource
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.evaluation.bm25 import evaluate_bm25
from nomic_jax.evaluation.kinds.retrieval import METRICS, from_pairs
from nomic_jax.inference.embedder import Embedder
from nomic_jax.inference.search import top_k
from nomic_jax.inference.verify import FINGERPRINT, write_fingerprint
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import Model
from nomic_jax.storage import exists, join, name_of, write_bytes, written_here
from nomic_jax.training.metrics import read_metrics

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
    """Draw the evaluation; the best value of each column is out."""
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


EXAMPLES_PER_SOURCE = 4  # queries whose results the report shows
HITS = 3  # documents shown for each
WEIGHTS = "model.safetensors"  # the largest file of an exported model


@dataclasses.dataclass(frozen=True)
class Figures:
    """How good a stage's head is: metrics by file, then by name."""

    stage: str
    files: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class PipelineState:
    """What a stage hands to the next."""

    tokenizer: TextTokenizer
    held_out: tuple[PairSource, ...]  # what the model is measured on
    model: Model | None = None  # with the head that a task stage trained
    embedding: EmbeddingConfig | None = None  # None: v1's, at the model's length
    rows: tuple[EvaluationRow, ...] = ()  # one for each state of the model
    figures: tuple[Figures, ...] = ()  # one for each head

    @property
    def encoder(self) -> NomicBert:
        """The encoder so far."""
        assert self.model is not None, "check_stages puts a training stage first"
        return self.model if isinstance(self.model, NomicBert) else self.model.encoder

    @property
    def embedder(self) -> Embedder:
        """The encoder so far, to embed with."""
        length = self.encoder.config.trained_positions
        v1 = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=length)
        return Embedder(self.encoder, self.tokenizer, self.embedding or v1)


def finish(
    carried: PipelineState, stage_names: Sequence[str], out: str
) -> list[EvaluationRow]:
    """Export the model, write the report, and return its table."""
    place = join(out, "model")
    export(carried, place)
    headed = carried.model is not carried.encoder
    if not headed and not exists(join(place, FINGERPRINT)):
        write_fingerprint(carried.embedder, place)
    rows = list(carried.rows)
    if carried.held_out:
        bm25 = {
            source.name: evaluate_bm25(from_pairs(source.pairs))
            for source in carried.held_out
        }
        rows.append(EvaluationRow("BM25", bm25))
    write_report(
        join(out, "report.html"),
        title=f"{name_of(out)}: {', '.join(stage_names)}",
        curves=_stage_curves(stage_names, out),
        rows=rows,
        examples=_examples(carried),
        facts=_facts(carried),
    )
    return rows


def export(carried: PipelineState, place: str) -> None:
    """Write the model so far, with the head it has, unless it is there."""
    if exists(join(place, WEIGHTS)):
        return
    headed = carried.model is not carried.encoder
    with written_here(place, last=WEIGHTS) as folder:
        save_model(
            carried.model or carried.encoder,
            carried.encoder.config,
            carried.embedding if headed else carried.embedder.config,
            carried.tokenizer,
            folder,
        )


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Write metrics in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _stage_curves(stage_names: Sequence[str], out: str) -> list[StageCurve]:
    curves = []
    for name in stage_names:
        path = join(out, name, "metrics.jsonl")
        if exists(path):
            # Steps that were all skipped have no loss.
            lines = [line for line in read_metrics(path) if line["loss"] is not None]
            values = {
                key: [line[key] for line in lines]
                for key in ("step", "loss", "learning_rate")
            }
            curves.append(StageCurve(name, *values.values()))
    return curves


def _examples(carried: PipelineState) -> list[Example]:
    """Search the held-out documents with a few queries, evenly spaced."""
    examples = []
    embedder = carried.embedder
    for source in carried.held_out:
        task = from_pairs(source.pairs)
        stride = max(1, len(task.queries) // EXAMPLES_PER_SOURCE)
        picked = range(0, len(task.queries), stride)[:EXAMPLES_PER_SOURCE]
        queries = [task.queries[i] for i in picked]
        prefixes = (source.query_prefix, source.document_prefix)
        query_prompt, document_prompt = map(embedder.config.task_of, prefixes)
        best = top_k(
            embedder.encode(queries, task=query_prompt),
            embedder.encode(task.documents, task=document_prompt),
            k=min(HITS, len(task.documents)),
        )
        for row, query, scores, found in zip(picked, queries, *best, strict=True):
            answers = list(task.relevance[row])
            hits = [
                Hit(task.documents[int(i)], float(score), int(i) in answers)
                for score, i in zip(scores, found, strict=True)
            ]
            answer = task.documents[answers[0]]
            examples.append(Example(query, answer, {"trained model": hits}))
    return examples


def _facts(carried: PipelineState) -> dict[str, str]:
    import jax

    config = carried.encoder.config
    size = sum(leaf.size for leaf in jax.tree.leaves(carried.model))
    figures = {
        f"{each.stage}, {file}": format_metrics(metrics)
        for each in carried.figures
        for file, metrics in each.files.items()
    }
    held_out = ", ".join(
        f"{source.name}: {len(source)} pairs" for source in carried.held_out
    )
    return {
        "model": f"{config.num_layers} layers of width {config.width}, "
        f"{size / 1e6:.1f} M parameters, {config.vocab_size} tokens",
        **({"held out": held_out} if held_out or not figures else {}),
        **figures,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
