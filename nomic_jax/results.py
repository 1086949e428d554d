"""What a run leaves at its end: the exported model and the report.

DIR/model/   DIR/report.html
"""

import dataclasses
from collections.abc import Mapping, Sequence

from nomic_jax.checkpoints.folder import save_model
from nomic_jax.config import EmbeddingConfig
from nomic_jax.embedder import Embedder
from nomic_jax.evaluation.bm25 import evaluate_bm25
from nomic_jax.evaluation.judged import from_pairs
from nomic_jax.folder_copy import written_here
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.head_models import Model
from nomic_jax.report import EvaluationRow, Example, Hit, StageCurve, write_report
from nomic_jax.search import nearest
from nomic_jax.sources.pairs import PairSource
from nomic_jax.storage import exists, join, name_of
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.run_folder import read_metrics
from nomic_jax.verify import FINGERPRINT, write_fingerprint

EXAMPLES_PER_SOURCE = 4  # queries whose results the report shows
HITS = 3  # documents shown for each
WEIGHTS = "model.safetensors"  # the largest file of an exported model


@dataclasses.dataclass(frozen=True)
class Figures:
    """How good a stage's head is: metrics by file, then by name."""

    stage: str
    files: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Carried:
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
    carried: Carried, stage_names: Sequence[str], out: str
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
        curves=_curves(stage_names, out),
        rows=rows,
        examples=_examples(carried),
        facts=_facts(carried),
    )
    return rows


def export(carried: Carried, place: str) -> None:
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


def told(metrics: Mapping[str, float]) -> str:
    """Write metrics in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _curves(stage_names: Sequence[str], out: str) -> list[StageCurve]:
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


def _examples(carried: Carried) -> list[Example]:
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
        best = nearest(
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


def _facts(carried: Carried) -> dict[str, str]:
    import jax

    config = carried.encoder.config
    size = sum(leaf.size for leaf in jax.tree.leaves(carried.model))
    figures = {
        f"{each.stage}, {file}": told(metrics)
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
