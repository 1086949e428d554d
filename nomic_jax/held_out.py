"""A run's held-out pairs as a measure of its model: while it trains, and after stages.

The first host measures, on its own devices; the others wait and get the figures.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from nomic_jax import hosts
from nomic_jax.evaluation.retrieval import evaluate, task_from_pairs
from nomic_jax.model.encoder import NomicBert
from nomic_jax.own_devices import on_own_devices
from nomic_jax.report import EvaluationRow, format_table
from nomic_jax.results import Carried
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.training.run_folder import RunFolder


def measured(
    carried: Carried, label: str, folder: RunFolder, file: str = "evaluation.json"
) -> Carried:
    """Add the model's figures on the held-out pairs, measured once a run."""
    if not carried.held_out:
        return carried
    place = join(folder.place, file)

    def work() -> dict[str, dict[str, float]]:
        if not exists(place):
            write_json(place, _figures(carried))
        return read_json(place)

    row = EvaluationRow(label, hosts.from_first(label, work))
    say(format_table([row]))
    return dataclasses.replace(carried, rows=(*carried.rows, row))


def _figures(carried: Carried) -> dict[str, dict[str, float]]:
    """Measure retrieval on the held-out pairs of each source."""
    embedder = carried.embedder
    return {
        source.name: evaluate(
            task_from_pairs(source.name, source.pairs),
            *embedder.encoders(source.query_prefix, source.document_prefix),
        )
        for source in carried.held_out
    }


def while_training(carried: Carried) -> Callable[[NomicBert], dict[str, float]]:
    """Make what measures an encoder while it trains: `SOURCE/METRIC` to figure."""

    def measure(encoder: NomicBert) -> dict[str, float]:
        own = dataclasses.replace(carried, model=on_own_devices(encoder))
        figures = hosts.from_first("evaluation", lambda: _figures(own))
        return {
            f"{source}/{metric}": value
            for source, metrics in figures.items()
            for metric, value in metrics.items()
        }

    return measure


def say(text: Any) -> None:
    """Tell whoever watches the run; the first host speaks for all."""
    if hosts.is_first():
        print(text, file=sys.stderr, flush=True)
