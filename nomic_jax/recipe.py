"""Run a config's stages in order; what `train.py` calls.

    DIR/STAGE/   config.json, what the stage made, evaluation.json
    DIR/model/   the exported model        DIR/report.html

A stage that is complete is not run again, so the same command resumes. Of several
hosts, which see the same folder, all train; the rest is the first one's, on its own
devices, and the others wait.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nomic_jax import hosts
from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.curation.mining import MineStage, mine_negatives
from nomic_jax.embedder import Embedder, default_dtype, keep_compiled_programs
from nomic_jax.evaluation.extras import extra
from nomic_jax.folder_copy import written_here
from nomic_jax.held_out import check_sts, measured, say, while_training
from nomic_jax.own_devices import on_own_devices
from nomic_jax.report import format_table
from nomic_jax.results import Carried, finish
from nomic_jax.stages import KINDS, Stage, check_stages, is_place, resolve
from nomic_jax.storage import check_out, exists, join, read_bytes
from nomic_jax.store.corpus import (
    PAIRS,
    SOURCES,
    TEXT,
    PrepareStage,
    is_prepared,
    prepare,
    read_sources,
)
from nomic_jax.store.store import Store, open_stores
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.checkpoints import check_checkpoints_place
from nomic_jax.training.contrastive import (
    ContrastiveStage,
    pair_batches,
    stage_embedding,
    train_contrastive,
)
from nomic_jax.training.frozen import check_tokenizer
from nomic_jax.training.mlm import MlmStage, fresh_model, mlm_batches, train_mlm
from nomic_jax.training.run_folder import RunFolder


def run(stages: Sequence[Stage], out: str | Path) -> None:
    """Run the stages, or what is left of them; export the model, write the report.

    Args:
        stages: in order; each uses what those before it left.
        out: the run's folder, local or a URL of a store that Orbax writes to.

    Raises:
        ValueError: the stages do not fit one another, the folder holds a run of another
            config, or the text is not as it should be.
        SystemExit: with status 75 after a signal, once the state is saved.
    """
    check_stages(stages)
    out = str(out)
    check_out(out)
    check_checkpoints_place(out)
    resolved = resolve(stages)
    facts = {"config": resolved, "versions": hosts.versions()}
    hosts.agree("config and packages", facts)
    for name, config in resolved.items():
        RunFolder.check(join(out, name), config)
    missing = [name for name in resolved if not exists(join(out, name, "config.json"))]
    if missing and exists(join(out, "model")):
        raise ValueError(
            f"{join(out, 'model')} is of a run without {', '.join(missing)}; "
            f"use another --out, or remove {out}"
        )
    check_sts(stages)
    for library in ("pytrec_eval", "bm25s"):
        extra(library)  # missed now, not when the training is done
    keep_compiled_programs()
    carried: Carried | None = None
    for number, stage in enumerate(stages, 1):
        folder = _opened(join(out, stage.name), resolved[stage.name])
        say(f"[{number}/{len(stages)}] {stage.name} ({KINDS[type(stage)]})")
        if isinstance(stage, PrepareStage):
            carried = _prepared(stage, folder)
            _check_stores(stages, carried.tokenizer, out)
            continue
        begins = carried is None
        if isinstance(stage, ContrastiveStage) and stage.start.model:
            carried = _from_model(stage, carried)
        elif carried is None:
            carried = _from_stores(stage)
        if begins:
            _check_stores(stages, carried.tokenizer, out)
        if isinstance(stage, MlmStage):
            carried = _trained_mlm(stage, carried, folder, out)
        elif isinstance(stage, ContrastiveStage):
            carried = _trained_contrastive(stage, carried, folder, out)
        else:
            _mined(stage, carried, folder, out)
    if carried is not None and carried.model is not None:
        hosts.from_first("report", lambda: _finished(carried, list(resolved), out))


def _stores(place: str, kind: str, out: str) -> dict[str, Store]:
    """Open the stores that a stage of this run made, or those of a folder or URL."""
    return open_stores(place if is_place(place) else join(out, place, kind))


def _check_stores(stages: Sequence[Stage], tokenizer: TextTokenizer, out: str) -> None:
    """Refuse what does not fit now, not when the stages before have run.

    Raises:
        ValueError: a stage's stores do not fit it, or a guide or teacher has another
            tokenizer than the model that it helps to train.
    """
    mines = {stage.name: stage for stage in stages if isinstance(stage, MineStage)}
    for stage in stages:
        if isinstance(stage, MlmStage):
            stores = _stores(stage.data.stores, TEXT, out)
            mlm_batches(stage, stores, tokenizer)
        elif isinstance(stage, ContrastiveStage):
            if stage.start.model:
                tokenizer = _tokenizer_of(stage.start.model)
            for section, named in _frozen_models(stage).items():
                digest = _tokenizer_of(named).digest
                check_tokenizer(section, named, digest, tokenizer.digest)
            # Mining keeps the pairs it is given, and adds the negatives.
            data = stage.data
            while data.stores in mines:
                giver = mines[data.stores].data.stage
                data = dataclasses.replace(data, stores=giver, num_negatives=0)
            stores = _stores(data.stores, PAIRS, out)
            pair_batches(dataclasses.replace(stage, data=data), stores, tokenizer)


def _opened(folder: str, config: Mapping[str, Any]) -> RunFolder:
    """Open a stage's folder on all hosts; the first one makes it.

    Raises:
        ValueError: it holds another run, or a host does not see what the first wrote.
    """
    hosts.from_first(f"folder {folder}", lambda: bool(RunFolder.open(folder, config)))
    seen = {"sees it": exists(join(folder, "config.json"))}
    hosts.agree(f"{folder}, which all hosts must share", seen)
    return RunFolder.open(folder, config, write=hosts.is_first())


def _finished(carried: Carried, names: Sequence[str], out: str) -> None:
    rows = finish(carried, names, out)
    say(f"model: {join(out, 'model')}   report: {join(out, 'report.html')}")
    print(format_table(rows), flush=True)


def _prepared(stage: PrepareStage, folder: RunFolder) -> Carried:
    def work() -> None:
        if is_prepared(folder.place):
            return
        given = stage.data.tokenizer
        tokenizer = _tokenizer_of(given) if given else None
        with written_here(folder.place, last=SOURCES) as path:
            prepare(stage.data, path, tokenizer=tokenizer)

    hosts.from_first(stage.name, work)
    held_out = read_sources(folder.place, "held_out")
    return Carried(_tokenizer_in(folder.place), held_out)


def _from_stores(stage: Stage) -> Carried:
    """Begin without a prepare stage: the stores bring their tokenizer along."""
    assert isinstance(stage, MlmStage), "check_stages puts prepare or mlm first"
    open_stores(stage.data.stores)  # says what is missing, if anything is
    return Carried(_tokenizer_in(stage.data.stores), held_out=())


def _tokenizer_of(model: str) -> TextTokenizer:
    return TextTokenizer.from_folder(resolve_model(model, weights=False))


def _frozen_models(stage: ContrastiveStage) -> dict[str, str]:
    named = {"guide": stage.guide.model, "teacher": stage.teacher.model}
    return {section: named[section] for section in named if named[section]}


def _tokenizer_in(folder: str) -> TextTokenizer:
    place = join(folder, "tokenizer.json")
    return TextTokenizer.from_json(read_bytes(place).decode(), place=place)


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
    stage: MlmStage, carried: Carried, folder: RunFolder, out: str
) -> Carried:
    fresh = fresh_model(stage, carried.tokenizer, dtype=default_dtype())
    carried = dataclasses.replace(carried, model=fresh.encoder)
    carried = measured(carried, "random weights", folder, "evaluation_before.json")
    stores = _stores(stage.data.stores, TEXT, out)
    model = train_mlm(
        stage,
        fresh,
        carried.tokenizer,
        stores,
        folder,
        evaluate=while_training(carried, stage.train.sts),
    )
    carried = dataclasses.replace(carried, model=on_own_devices(model.encoder))
    return measured(carried, f"after {stage.name}", folder)


def _trained_contrastive(
    stage: ContrastiveStage, carried: Carried, folder: RunFolder, out: str
) -> Carried:
    if stage.start.model:
        label = f"before {stage.name}"
        carried = measured(carried, label, folder, "evaluation_before.json")
    stores = _stores(stage.data.stores, PAIRS, out)
    embedder = carried.embedder
    trained = dataclasses.replace(
        carried, embedding=stage_embedding(stage, embedder.config)
    )
    frozen = {
        section: Embedder.from_pretrained(named)
        for section, named in _frozen_models(stage).items()
    }
    model = train_contrastive(
        stage,
        embedder.model,
        carried.tokenizer,
        embedder.config,
        stores,
        folder,
        evaluate=while_training(trained, stage.train.sts),
        **{section: (other.model, other.config) for section, other in frozen.items()},
    )
    carried = dataclasses.replace(trained, model=on_own_devices(model))
    return measured(carried, f"after {stage.name}", folder)


def _mined(stage: MineStage, carried: Carried, folder: RunFolder, out: str) -> None:
    def work() -> None:
        if is_prepared(folder.place):
            return
        giver = join(out, stage.data.stage)
        rule = next(iter(open_stores(join(giver, PAIRS)).values())).manifest.rule
        with written_here(folder.place, last=SOURCES) as path:
            mine_negatives(
                read_sources(giver, "train"),
                carried.embedder,
                stage.mining,
                path,
                query_length=rule["query_length"],
                document_length=rule["document_length"],
            )

    hosts.from_first(stage.name, work)
