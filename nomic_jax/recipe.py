"""Run a config's stages in order; what `train.py` calls.

    DIR/STAGE/   config.json, what the stage made, evaluation.json
    DIR/model/   the exported model        DIR/report.html

A stage that is complete is not run again, so the same command resumes.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nomic_jax.checkpoints.folder import save_model
from nomic_jax.config import EmbeddingConfig
from nomic_jax.curation.mining import MineStage, mine_negatives
from nomic_jax.data.prepare import (
    PrepareStage,
    is_prepared,
    prepare,
    read_documents,
    read_sources,
)
from nomic_jax.data.schedule import Schedule
from nomic_jax.data.sources import PairSource
from nomic_jax.embedder import Embedder, default_dtype, keep_compiled_programs
from nomic_jax.evaluation.bm25 import evaluate_bm25
from nomic_jax.evaluation.extras import extra
from nomic_jax.evaluation.retrieval import evaluate, rank, task_from_pairs
from nomic_jax.model.encoder import NomicBert
from nomic_jax.report import (
    EvaluationRow,
    Example,
    Hit,
    StageCurve,
    format_table,
    write_report,
)
from nomic_jax.stages import KINDS, Stage, check_stages, resolve
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.contrastive import ContrastiveStage, train_contrastive
from nomic_jax.training.mlm import MlmStage, fresh_model, train_mlm
from nomic_jax.training.run_folder import RunFolder, read_metrics
from nomic_jax.verify import FINGERPRINT, write_fingerprint
from nomic_jax.whole_file import write_json

EXAMPLES_PER_SOURCE = 4  # queries whose results the report shows
HITS = 3  # documents shown for each


@dataclasses.dataclass(frozen=True)
class Carried:
    """What a stage hands to the next."""

    tokenizer: TextTokenizer
    prepared: Path  # the folder of the prepare stage
    held_out: tuple[PairSource, ...]
    model: NomicBert | None = None
    rows: tuple[EvaluationRow, ...] = ()  # one for each state of the model

    @property
    def embedder(self) -> Embedder:
        """The model so far, with v1's conventions, at the length it is trained for."""
        assert self.model is not None, "check_stages puts a training stage first"
        length = self.model.config.trained_positions
        config = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=length)
        return Embedder(self.model, self.tokenizer, config)


def run(stages: Sequence[Stage], out: Path) -> None:
    """Run the stages, or what is left of them; export the model, write the report.

    Args:
        stages: in order; each uses what those before it left.
        out: the run's folder.

    Raises:
        ValueError: the stages do not fit one another, the folder holds a run of another
            config, or the text is not as it should be.
        SystemExit: with status 75 after a signal, once the state is saved.
    """
    check_stages(stages)
    resolved = resolve(stages)
    for name, config in resolved.items():
        RunFolder.check(out / name, config)
    missing = [name for name in resolved if not (out / name).is_dir()]
    if missing and (out / "model").exists():
        raise ValueError(
            f"{out / 'model'} is of a run without {', '.join(missing)}; "
            f"use another --out, or remove {out}"
        )
    for library in ("pytrec_eval", "bm25s"):
        extra(library)  # missed now, not when the training is done
    keep_compiled_programs()
    carried: Carried | None = None
    for number, stage in enumerate(stages, 1):
        folder = RunFolder.open(out / stage.name, resolved[stage.name])
        _say(f"[{number}/{len(stages)}] {stage.name} ({KINDS[type(stage)]})")
        if isinstance(stage, PrepareStage):
            carried = _prepared(stage, folder)
            _check_batches(stages, folder.path)
            continue
        assert carried is not None, "check_stages puts a prepare stage first"
        if isinstance(stage, MlmStage):
            carried = _trained_mlm(stage, carried, folder)
        elif isinstance(stage, ContrastiveStage):
            carried = _trained_contrastive(stage, carried, folder, out)
        else:
            _mined(stage, carried, folder, out)
    if carried is not None and carried.model is not None:
        _finish(carried, stages, out)


def _check_batches(stages: Sequence[Stage], prepared: Path) -> None:
    """Refuse sources that fill no batch now, not when the stages before have run."""
    sizes = {source.name: len(source) for source in read_sources(prepared, "train")}
    for stage in stages:
        if isinstance(stage, ContrastiveStage):
            train = stage.train
            Schedule.over(sizes, batch_size=train.batch_size, seed=train.seed)


def _prepared(stage: PrepareStage, folder: RunFolder) -> Carried:
    if not is_prepared(folder.path):
        prepare(stage.data, folder.path)
    tokenizer = TextTokenizer.from_folder(folder.path)
    return Carried(tokenizer, folder.path, read_sources(folder.path, "held_out"))


def _trained_mlm(stage: MlmStage, carried: Carried, folder: RunFolder) -> Carried:
    fresh = fresh_model(stage, carried.tokenizer, dtype=default_dtype())
    carried = dataclasses.replace(carried, model=fresh.encoder)
    carried = _measured(carried, "random weights", folder, "evaluation_before.json")
    texts = read_documents(carried.prepared)
    model = train_mlm(stage, fresh, carried.tokenizer, texts, folder)
    carried = dataclasses.replace(carried, model=model.encoder)
    return _measured(carried, f"after {stage.name}", folder)


def _trained_contrastive(
    stage: ContrastiveStage, carried: Carried, folder: RunFolder, out: Path
) -> Carried:
    sources = read_sources(out / stage.data.stage, "train")
    embedder = carried.embedder
    model = train_contrastive(
        stage, embedder.model, carried.tokenizer, embedder.config, sources, folder
    )
    carried = dataclasses.replace(carried, model=model)
    return _measured(carried, f"after {stage.name}", folder)


def _mined(stage: MineStage, carried: Carried, folder: RunFolder, out: Path) -> None:
    if not is_prepared(folder.path):
        sources = read_sources(out / stage.data.stage, "train")
        mine_negatives(sources, carried.embedder, stage.mining, folder.path)


def _measured(
    carried: Carried, label: str, folder: RunFolder, file: str = "evaluation.json"
) -> Carried:
    """Add the model's figures on the held-out pairs, measured once a run."""
    path = folder.path / file
    if not path.is_file():
        embedder = carried.embedder
        figures = {
            source.name: evaluate(
                task_from_pairs(source.name, source.pairs),
                *embedder.encoders(source.query_prefix, source.document_prefix),
            )
            for source in carried.held_out
        }
        write_json(path, figures)
    row = EvaluationRow(label, json.loads(path.read_text()))
    _say(format_table([row]))
    return dataclasses.replace(carried, rows=(*carried.rows, row))


def _finish(carried: Carried, stages: Sequence[Stage], out: Path) -> None:
    """Export the model, write the report, and end with the table."""
    embedder = carried.embedder
    if not (out / "model").exists():
        save_model(
            embedder.model,
            embedder.model.config,
            embedder.config,
            embedder.tokenizer,
            out / "model",
        )
    if not (out / "model" / FINGERPRINT).exists():
        write_fingerprint(embedder, out / "model")
    bm25 = {
        source.name: evaluate_bm25(task_from_pairs(source.name, source.pairs))
        for source in carried.held_out
    }
    rows = [*carried.rows, EvaluationRow("BM25", bm25)]
    write_report(
        out / "report.html",
        title=f"{out.name}: {', '.join(stage.name for stage in stages)}",
        curves=_curves(stages, out),
        rows=rows,
        examples=_examples(carried),
        facts=_facts(carried),
    )
    _say(f"model: {out / 'model'}   report: {out / 'report.html'}")
    print(format_table(rows), flush=True)


def _curves(stages: Sequence[Stage], out: Path) -> list[StageCurve]:
    curves = []
    for stage in stages:
        path = out / stage.name / "metrics.jsonl"
        if path.is_file():
            lines = read_metrics(path)
            values = {
                key: [line[key] for line in lines]
                for key in ("step", "loss", "learning_rate")
            }
            curves.append(StageCurve(stage.name, *values.values()))
    return curves


def _examples(carried: Carried) -> list[Example]:
    """Search the held-out documents with a few queries, evenly spaced."""
    examples = []
    embedder = carried.embedder
    for source in carried.held_out:
        task = task_from_pairs(source.name, source.pairs)
        stride = max(1, len(task.queries) // EXAMPLES_PER_SOURCE)
        picked = range(0, len(task.queries), stride)[:EXAMPLES_PER_SOURCE]
        few = dataclasses.replace(
            task,
            queries=[task.queries[i] for i in picked],
            relevant=[task.relevant[i] for i in picked],
        )
        ranking = rank(
            few, *embedder.encoders(source.query_prefix, source.document_prefix)
        )
        for row, query in enumerate(few.queries):
            answers = few.relevant[row]
            answer = task.documents[answers[0]]
            best = zip(ranking.scores[row], ranking.documents[row], strict=True)
            hits = [
                Hit(task.documents[int(i)], float(score), int(i) in answers)
                for score, i in itertools.islice(best, HITS)
            ]
            examples.append(Example(query, answer, {"trained model": hits}))
    return examples


def _facts(carried: Carried) -> dict[str, str]:
    import jax

    config = carried.embedder.model.config
    size = sum(leaf.size for leaf in jax.tree.leaves(carried.model))
    return {
        "model": f"{config.num_layers} layers of width {config.width}, "
        f"{size / 1e6:.1f} M parameters, {config.vocab_size} tokens",
        "held out": ", ".join(
            f"{source.name}: {len(source)} pairs" for source in carried.held_out
        ),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)
