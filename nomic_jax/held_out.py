"""What a run's model is measured on: held-out pairs, and sentence pairs with scores.

The first host measures, on its own devices; the others wait and get the figures.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nomic_jax import hosts
from nomic_jax.evaluation.extras import extra
from nomic_jax.evaluation.retrieval import evaluate, task_from_pairs
from nomic_jax.evaluation.sts import SentencePairs, read_sts, spearman
from nomic_jax.model.encoder import NomicBert
from nomic_jax.own_devices import on_own_devices
from nomic_jax.report import EvaluationRow, format_table
from nomic_jax.results import Carried
from nomic_jax.storage import exists, join, read_json, write_json
from nomic_jax.training.contrastive import ContrastiveStage
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import RunFolder

STS_TASK = "classification"  # whose prefix Nomic's models get for it in MTEB


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


def check_sts(stages: Sequence[object]) -> None:
    """Refuse a file of sentence pairs that cannot be read, before anything is trained.

    Raises:
        ValueError: with the file and the line.
    """
    for stage in stages:
        if isinstance(stage, MlmStage | ContrastiveStage) and stage.train.sts:
            read_sts(stage.train.sts)
            extra("scipy.stats")


def while_training(
    carried: Carried, sts: str
) -> Callable[[NomicBert], dict[str, float]] | None:
    """Make what measures an encoder while it trains: `SOURCE/METRIC` to figure.

    Args:
        carried: whose held-out pairs are searched.
        sts: file of sentence pairs, measured as `sts/spearman`; empty: none.

    Returns:
        None where there is nothing to measure it on.
    """
    sentences = read_sts(sts) if sts else None
    prompts = carried.embedder.config.prompts
    if sts and STS_TASK not in prompts:
        raise ValueError(
            f"sts={sts!r} is embedded as {STS_TASK!r}, of which the model has no "
            f"prompt; it has {', '.join(prompts)}"
        )
    if sentences is None and not carried.held_out:
        return None

    def measure(encoder: NomicBert) -> dict[str, float]:
        own = dataclasses.replace(carried, model=on_own_devices(encoder))

        def work() -> dict[str, dict[str, float]]:
            found = _figures(own)
            if sentences is not None:
                found["sts"] = {"spearman": _spearman(own, sentences)}
            return found

        return {
            f"{source}/{metric}": value
            for source, metrics in hosts.from_first("evaluation", work).items()
            for metric, value in metrics.items()
        }

    return measure


def _spearman(carried: Carried, sentences: SentencePairs) -> float:
    first, second = (
        carried.embedder.encode(side, task=STS_TASK)
        for side in (sentences.sentence1, sentences.sentence2)
    )
    return spearman(first, second, sentences.scores)


def say(text: Any) -> None:
    """Tell whoever watches the run; the first host speaks for all."""
    if hosts.is_first():
        print(text, file=sys.stderr, flush=True)
