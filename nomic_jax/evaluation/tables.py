"""Tables of an evaluation, in Markdown."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from nomic_jax.evaluation.measured import Results
from nomic_jax.evaluation.metrics import METRICS

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
