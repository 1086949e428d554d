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
from nomic_jax.curation.mining import MineStage, mine_negatives
from nomic_jax.embedder import Embedder, default_dtype, keep_compiled_programs
from nomic_jax.folder_copy import written_here
from nomic_jax.held_out import measured, say, while_training
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.own_devices import digest, on_own_devices
from nomic_jax.preflight import (
    check_folder,
    check_stores,
    frozen_models,
    stores_of,
    tokenizer_of,
)
from nomic_jax.report import format_table
from nomic_jax.results import Carried, finish
from nomic_jax.shared_folder import check_shared, wait_to_see
from nomic_jax.stages import KINDS, Stage, check_stages, resolve
from nomic_jax.storage import join, read_bytes
from nomic_jax.store.collection import PAIRS, TEXT
from nomic_jax.store.corpus import (
    SOURCES,
    PrepareStage,
    is_prepared,
    prepare,
    read_sources,
    write_sources,
)
from nomic_jax.store.places import PlacesConfig, prepare_places
from nomic_jax.store.store import open_stores
from nomic_jax.task_run import begin_task, trained_task
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.contrastive import (
    ContrastiveStage,
    stage_embedding,
    train_contrastive,
)
from nomic_jax.training.mlm import MlmStage, first_model, train_mlm
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import upcycled_encoder
from nomic_jax.training.task import TaskStage


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
    out, resolved = str(out), resolve(stages)
    facts = {"config": resolved, "versions": hosts.versions()}
    hosts.agree("config and packages", facts)
    hosts.together("run folder", lambda: check_folder(stages, resolved, out))
    check_shared(out)
    keep_compiled_programs()
    carried: Carried | None = None
    for number, stage in enumerate(stages, 1):
        folder = _opened(join(out, stage.name), resolved[stage.name])
        say(f"[{number}/{len(stages)}] {stage.name} ({KINDS[type(stage)]})")
        if isinstance(stage, PrepareStage):
            carried = _prepared(stage, folder)
            _checked(stages, carried.tokenizer, out)
            continue
        begins = carried is None
        if isinstance(stage, TaskStage):
            carried = begin_task(stage, carried, out)
        elif isinstance(stage, ContrastiveStage) and stage.start.model:
            carried = _from_model(stage, carried)
        elif carried is None:
            carried = _from_stores(stage)
        if begins:
            _checked(stages, carried.tokenizer, out)
        if isinstance(stage, MlmStage):
            carried = _trained_mlm(stage, carried, folder, out)
        elif isinstance(stage, ContrastiveStage):
            carried = _trained_contrastive(stage, carried, folder, out)
        elif isinstance(stage, TaskStage):
            carried = trained_task(stage, carried, folder)
        else:
            _mined(stage, carried, folder, out)
    if carried is not None and carried.model is not None:
        hosts.from_first("report", lambda: _finished(carried, list(resolved), out))


def _checked(stages: Sequence[Stage], tokenizer: TextTokenizer, out: str) -> None:
    hosts.together("stores", lambda: check_stores(stages, tokenizer, out))


def _opened(folder: str, config: Mapping[str, Any]) -> RunFolder:
    """Open a stage's folder on all hosts; the first one makes it."""
    hosts.from_first("folder", lambda: bool(RunFolder.open(folder, config)))
    wait_to_see(join(folder, "config.json"))
    return RunFolder.open(folder, config, write=hosts.is_first())


def _finished(carried: Carried, names: Sequence[str], out: str) -> None:
    rows = finish(carried, names, out)
    say(f"model: {join(out, 'model')}   report: {join(out, 'report.html')}")
    if rows:
        print(format_table(rows), flush=True)


def _prepared(stage: PrepareStage, folder: RunFolder) -> Carried:
    def work() -> None:
        if is_prepared(folder.place):
            return
        data = stage.data
        tokenizer = tokenizer_of(data.tokenizer) if data.tokenizer else None
        if isinstance(data, PlacesConfig):
            assert tokenizer is not None, "a PlacesConfig names its tokenizer"
            prepare_places(data, folder.place, tokenizer)
            write_sources(folder.place, (), fingerprint=tokenizer.digest)
            return
        with written_here(folder.place, last=SOURCES) as path:
            prepare(data, path, tokenizer=tokenizer)

    hosts.from_first(stage.name, work)
    wait_to_see(join(folder.place, SOURCES))
    held_out = read_sources(folder.place, "held_out")
    return Carried(_tokenizer_in(folder.place), held_out)


def _from_stores(stage: Stage) -> Carried:
    """Begin without a prepare stage: the stores bring their tokenizer along."""
    assert isinstance(stage, MlmStage), "check_stages puts prepare or mlm first"
    open_stores(stage.data.stores)  # says what is missing, if anything is
    return Carried(_tokenizer_in(stage.data.stores), held_out=())


def _loaded(model: str) -> Embedder:
    """Load a model on every host, the same weights on each.

    Raises:
        ValueError: it is no model, it has a dense layer behind its pooling, or hosts
            have different ones.
    """
    embedder = hosts.together(model, lambda: Embedder.from_pretrained(model))
    if embedder.projection is not None:
        raise ValueError(
            f"{model} has a dense layer after its pooling, which training has no place "
            "for; take a model without one"
        )
    if hosts.count() > 1:
        hosts.agree(f"weights of {model}", {"digest": digest(embedder.model)})
    return embedder


def _tokenizer_in(folder: str) -> TextTokenizer:
    place = join(folder, "tokenizer.json")
    return TextTokenizer.from_json(read_bytes(place).decode(), place=place)


def _from_model(stage: ContrastiveStage, carried: Carried | None) -> Carried:
    """Begin, or go on, with a model that was trained elsewhere."""
    embedder = _loaded(stage.start.model)
    longest = max(stage.data.query_length, stage.data.document_length)
    if longest > embedder.model.config.trained_positions:
        raise ValueError(
            f"{stage.name} has texts of {longest} tokens, {stage.start.model} was "
            f"trained on up to {embedder.model.config.trained_positions}"
        )
    model = embedder.model
    if stage.start.num_experts:
        dtype, seed = default_dtype(), stage.train.seed
        model = on_own_devices(upcycled_encoder(stage.start, seed=seed, dtype=dtype))
    return dataclasses.replace(
        carried or Carried(embedder.tokenizer, held_out=()),
        tokenizer=embedder.tokenizer,
        model=model,
        embedding=embedder.config,
    )


def _trained_mlm(
    stage: MlmStage, carried: Carried, folder: RunFolder, out: str
) -> Carried:
    def begin() -> MaskedLanguageModel:
        return first_model(stage, carried.tokenizer, dtype=default_dtype())

    named = stage.start.model
    first = hosts.together(named or "fresh model", begin)
    if named and hosts.count() > 1:
        hosts.agree(f"weights of {named}", {"digest": digest(first)})
    carried = dataclasses.replace(carried, model=on_own_devices(first.encoder))
    label = f"before {stage.name}" if named else "random weights"
    carried = measured(carried, label, folder, "evaluation_before.json")
    stores = stores_of(stage.data.stores, TEXT, out)
    model = train_mlm(
        stage,
        first,
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
    stores = stores_of(stage.data.stores, PAIRS, out)
    embedder = carried.embedder
    trained = dataclasses.replace(
        carried, embedding=stage_embedding(stage, embedder.config)
    )
    frozen = {
        section: _loaded(named) for section, named in frozen_models(stage).items()
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
    wait_to_see(join(folder.place, SOURCES))
