"""Run a config's stages in order; what `train.py` calls.

    DIR/STAGE/   config.json, what the stage made, evaluation.json
    DIR/model/   the exported model        DIR/report.html

A stage that is complete is not run again, so the same command resumes.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.curation.mining import MineStage, mine_negatives
from nomic_jax.embedder import Embedder, default_dtype, keep_compiled_programs
from nomic_jax.evaluation.extras import extra
from nomic_jax.evaluation.retrieval import evaluate, task_from_pairs
from nomic_jax.model.encoder import NomicBert
from nomic_jax.report import EvaluationRow, format_table
from nomic_jax.results import Carried, finish
from nomic_jax.stages import KINDS, Stage, check_stages, is_place, resolve
from nomic_jax.storage import join, read_bytes, write_json
from nomic_jax.store.corpus import (
    PAIRS,
    TEXT,
    PrepareStage,
    is_prepared,
    prepare,
    read_sources,
)
from nomic_jax.store.store import Store, open_stores
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.contrastive import (
    ContrastiveStage,
    pair_batches,
    train_contrastive,
)
from nomic_jax.training.mlm import MlmStage, fresh_model, mlm_batches, train_mlm
from nomic_jax.training.run_folder import RunFolder


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
            _check_stores(stages, carried.tokenizer, out)
            continue
        if isinstance(stage, ContrastiveStage) and stage.start.model:
            carried = _from_model(stage, carried)
            _check_stores([stage], carried.tokenizer, out)
            label = f"before {stage.name}"
            carried = _measured(carried, label, folder, "evaluation_before.json")
        elif carried is None:
            carried = _from_stores(stage)
            _check_stores(stages, carried.tokenizer, out)
        if isinstance(stage, MlmStage):
            carried = _trained_mlm(stage, carried, folder, out)
        elif isinstance(stage, ContrastiveStage):
            carried = _trained_contrastive(stage, carried, folder, out)
        else:
            _mined(stage, carried, folder, out)
    if carried is not None and carried.model is not None:
        rows = finish(carried, list(resolved), out)
        _say(f"model: {out / 'model'}   report: {out / 'report.html'}")
        print(format_table(rows), flush=True)


def _stores(place: str, kind: str, out: Path) -> dict[str, Store]:
    """Open the stores that a stage of this run made, or those of a folder or URL."""
    return open_stores(place if is_place(place) else join(out / place, kind))


def _check_stores(stages: Sequence[Stage], tokenizer: TextTokenizer, out: Path) -> None:
    """Refuse stores that do not fit now, not when the stages before have run."""
    mines = {stage.name: stage for stage in stages if isinstance(stage, MineStage)}
    for stage in stages:
        if isinstance(stage, MlmStage):
            stores = _stores(stage.data.stores, TEXT, out)
            mlm_batches(stage, stores, tokenizer)
        elif isinstance(stage, ContrastiveStage):
            # Mining keeps the pairs it is given, and adds the negatives.
            data = stage.data
            while data.stores in mines:
                giver = mines[data.stores].data.stage
                data = dataclasses.replace(data, stores=giver, num_negatives=0)
            stores = _stores(data.stores, PAIRS, out)
            pair_batches(dataclasses.replace(stage, data=data), stores, tokenizer)


def _prepared(stage: PrepareStage, folder: RunFolder) -> Carried:
    if not is_prepared(folder.path):
        given = stage.data.tokenizer
        prepare(
            stage.data,
            folder.path,
            tokenizer=TextTokenizer.from_folder(resolve_model(given, weights=False))
            if given
            else None,
        )
    tokenizer = TextTokenizer.from_folder(folder.path)
    return Carried(tokenizer, read_sources(folder.path, "held_out"))


def _from_stores(stage: Stage) -> Carried:
    """Begin without a prepare stage: the stores bring their tokenizer along."""
    assert isinstance(stage, MlmStage), "check_stages puts prepare or mlm first"
    open_stores(stage.data.stores)  # says what is missing, if anything is
    place = join(stage.data.stores, "tokenizer.json")
    tokenizer = TextTokenizer.from_json(read_bytes(place).decode(), place=place)
    return Carried(tokenizer, held_out=())


def _from_model(stage: ContrastiveStage, carried: Carried | None) -> Carried:
    """Begin, or go on, with a model that was trained elsewhere."""
    embedder = Embedder.from_pretrained(stage.start.model)
    longest = max(stage.data.query_length, stage.data.document_length)
    if longest > embedder.model.config.trained_positions:
        raise ValueError(
            f"{stage.name} has texts of {longest} tokens, {stage.start.model} was "
            f"trained on up to {embedder.model.config.trained_positions}"
        )
    held_out = carried.held_out if carried else ()
    rows = carried.rows if carried else ()
    return Carried(embedder.tokenizer, held_out, embedder.model, embedder.config, rows)


def _trained_mlm(
    stage: MlmStage, carried: Carried, folder: RunFolder, out: Path
) -> Carried:
    fresh = fresh_model(stage, carried.tokenizer, dtype=default_dtype())
    carried = dataclasses.replace(carried, model=fresh.encoder)
    carried = _measured(carried, "random weights", folder, "evaluation_before.json")
    stores = _stores(stage.data.stores, TEXT, out)
    model = train_mlm(
        stage,
        fresh,
        carried.tokenizer,
        stores,
        folder,
        evaluate=_evaluation(carried) if carried.held_out else None,
    )
    carried = dataclasses.replace(carried, model=model.encoder)
    return _measured(carried, f"after {stage.name}", folder)


def _trained_contrastive(
    stage: ContrastiveStage, carried: Carried, folder: RunFolder, out: Path
) -> Carried:
    stores = _stores(stage.data.stores, PAIRS, out)
    embedder = carried.embedder
    model = train_contrastive(
        stage,
        embedder.model,
        carried.tokenizer,
        embedder.config,
        stores,
        folder,
        evaluate=_evaluation(carried) if carried.held_out else None,
    )
    carried = dataclasses.replace(carried, model=model)
    return _measured(carried, f"after {stage.name}", folder)


def _mined(stage: MineStage, carried: Carried, folder: RunFolder, out: Path) -> None:
    if is_prepared(folder.path):
        return
    giver = out / stage.data.stage
    rule = next(iter(open_stores(giver / PAIRS).values())).manifest.rule
    mine_negatives(
        read_sources(giver, "train"),
        carried.embedder,
        stage.mining,
        folder.path,
        query_length=rule["query_length"],
        document_length=rule["document_length"],
    )


def _measured(
    carried: Carried, label: str, folder: RunFolder, file: str = "evaluation.json"
) -> Carried:
    """Add the model's figures on the held-out pairs, measured once a run."""
    if not carried.held_out:
        return carried
    path = folder.path / file
    if not path.is_file():
        write_json(path, _figures(carried))
    row = EvaluationRow(label, json.loads(path.read_text()))
    _say(format_table([row]))
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


def _evaluation(carried: Carried) -> Callable[[NomicBert], dict[str, float]]:
    """Make what measures an encoder while it trains: `SOURCE/METRIC` to figure."""

    def measure(encoder: NomicBert) -> dict[str, float]:
        figures = _figures(dataclasses.replace(carried, model=encoder))
        return {
            f"{source}/{metric}": value
            for source, metrics in figures.items()
            for metric, value in metrics.items()
        }

    return measure


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)
