"""An encoder's stage within a run: what it begins with, its training, its evaluation.

All hosts train; the first host measures, on its own devices. If the config gives a
memory budget, the settings that fit are found once and kept:

    DIR/STAGE/memory.json

A run that is resumed keeps them, as long as it is on the same devices.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.checkpoints.sentence_transformers import tokenizer_folder
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.curation.filter import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.data.store.manifest import PAIRS, TEXT
from nomic_jax.data.store.store import Store, open_stores
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.distributed import hosts
from nomic_jax.distributed.devices import (
    default_dtype,
    digest,
    replicate_on_local_devices,
)
from nomic_jax.downstream.stage import TaskStage
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.pipeline.evaluate import measured, say, while_training
from nomic_jax.pipeline.order import (
    Stage,
    StageKind,
    go_on,
    is_place,
    is_trained,
    misgiven,
    untrained,
)
from nomic_jax.pipeline.report import PipelineState
from nomic_jax.storage import exists, join, read_bytes, read_json, write_json
from nomic_jax.training.contrastive import (
    ContrastiveStage,
    Frozen,
    FrozenEncoder,
    check_tokenizer,
    pair_batches,
    stage_embedding,
    train_contrastive,
)
from nomic_jax.training.mlm import MlmStage, first_model, mlm_batches, train_mlm
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.planning.abstract import (
    Assumptions,
    Step,
    TrainingStage,
    step_of_model,
)
from nomic_jax.training.planning.budget import enough_tokens, within_budget
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import upcycled_encoder

MEMORY = "memory.json"
EncoderStage = TypeVar("EncoderStage", MlmStage, ContrastiveStage)


def with_memory_settings(
    stage: EncoderStage,
    config: ModelConfig,
    embedding: EmbeddingConfig,
    folder: RunFolder,
    *,
    frozen: Frozen | None = None,
) -> EncoderStage:
    """Put the settings that fit a stage's budget in its place, on all hosts the same.

    Texts of pairs are taken as long as the config lets them be, so that no batch needs
    more than the budget.

    Args:
        stage: with a budget, or without: then it is returned as it is.
        config: of the model that it trains.
        embedding: how that embeds.
        folder: of the stage, which keeps what was found.
        frozen: the encoders next to it.

    Raises:
        ValueError: no settings fit the budget.
    """
    if stage.memory.budget is None:
        return stage
    place, devices = join(folder.place, MEMORY), jax.devices()
    found_for = {
        "budget": stage.memory.budget,
        "mesh": dataclasses.asdict(stage.mesh),
        "devices": [len(devices), devices[0].device_kind],
        "jax": jax.__version__,
    }

    def kept() -> dict[str, Any] | None:
        return read_json(place) if exists(place) else None

    known = hosts.broadcast_from_host0("memory settings", kept)
    if known is not None and known["found_for"] == found_for:
        return dataclasses.replace(stage, memory=MemoryConfig(**known["memory"]))
    shapes, dtype = jax.eval_shape(lambda: frozen or Frozen()), default_dtype()

    def step_of(stage: TrainingStage) -> Step:
        return step_of_model(
            *(stage, config, embedding, shapes, devices, Assumptions()),
            dtype=jnp.dtype(dtype),
        )

    enough = enough_tokens(devices[0].platform)
    # All hosts compile, as some compilers want them to. What the first finds counts.
    memory = hosts.run_on_all_hosts(
        "memory settings",
        lambda: within_budget(stage, step_of, enough=enough, say=say),
    )
    settings = hosts.broadcast_from_host0(
        "memory settings", lambda: dataclasses.asdict(memory)
    )
    if folder.writes:
        write_json(place, {"memory": settings, "found_for": found_for})
    return dataclasses.replace(stage, memory=MemoryConfig(**settings))


def stores_of(place: str, kind: str, out: str) -> dict[str, Store]:
    """Open the stores that a stage of this run made, or those of a folder or URL."""
    return open_stores(place if is_place(place) else join(out, place, kind))


def check_stores(stages: Sequence[Stage], tokenizer: TextTokenizer, out: str) -> None:
    """Refuse what does not fit now, not when the stages before have run.

    Raises:
        ValueError: a stage's stores do not fit it, or a guide or teacher has another
            tokenizer than the model that it helps to train.
    """
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        if isinstance(stage, MlmStage):
            stores = stores_of(stage.data.stores, TEXT, out)
            mlm_batches(stage, stores, tokenizer)
        elif isinstance(stage, TaskStage):
            if stage.start.model:
                tokenizer = tokenizer_of(stage.start.model)
        elif isinstance(stage, ContrastiveStage):
            if stage.start.model:
                tokenizer = tokenizer_of(stage.start.model)
            for section, named in frozen_models(stage).items():
                digest = tokenizer_of(named).digest
                check_tokenizer(section, named, digest, tokenizer.digest)
            # Mining keeps the pairs it is given and adds the negatives, a filter keeps
            # some: what the first of them has too little of, the last one has.
            data = stage.data
            while isinstance(
                giver := by_name.get(data.stores), FilterStage | MineStage
            ):
                stores = giver.data.stage
                if giver.data.query_length or giver.data.document_length:
                    stores = ""  # tokenised again
                data = dataclasses.replace(data, stores=stores, num_negatives=0)
            if data.stores:
                stores = stores_of(data.stores, PAIRS, out)
                pair_batches(dataclasses.replace(stage, data=data), stores, tokenizer)


def tokenizer_of(model: str) -> TextTokenizer:
    """Load the tokenizer alone of a folder or hub id."""
    folder = tokenizer_folder(resolve_model(model, weights=False))
    return TextTokenizer.from_folder(folder)


def frozen_models(stage: ContrastiveStage) -> dict[str, str]:
    """Name the models that a stage uses and does not train, by their section."""
    named = {"guide": stage.guide.model, "teacher": stage.teacher.model}
    return {section: named[section] for section in named if named[section]}


def from_stores(
    stage: MlmStage, carried: PipelineState | None, folder: RunFolder, out: str
) -> PipelineState:
    """Begin without a prepare stage: the stores bring their tokenizer along."""
    if carried is not None:
        return carried
    open_stores(stage.data.stores)  # says what is missing, if anything is
    return PipelineState(tokenizer_in(stage.data.stores), held_out=())


def loaded(model: str) -> Embedder:
    """Load a model on every host, the same weights on each.

    Raises:
        ValueError: it is not a model, it has a dense layer behind its pooling, or hosts
            have different ones.
    """
    embedder = hosts.run_on_all_hosts(model, lambda: Embedder.from_pretrained(model))
    if embedder.projection is not None:
        raise ValueError(
            f"{model} has a dense layer after its pooling, which training has no place "
            "for; take a model without one"
        )
    if hosts.count() > 1:
        hosts.assert_equal_across_hosts(
            f"weights of {model}", {"digest": digest(embedder.model)}
        )
    return embedder


def tokenizer_in(folder: str) -> TextTokenizer:
    """Load the tokenizer of a stage's folder, or of a collection of stores."""
    place = join(folder, "tokenizer.json")
    return TextTokenizer.from_json(read_bytes(place).decode(), place=place)


def from_model(
    stage: ContrastiveStage, carried: PipelineState | None, folder: RunFolder, out: str
) -> PipelineState:
    """Begin, or go on, with a model that was trained elsewhere, if one is named.

    Raises:
        ValueError: it is not a model that can be trained, or the stage's texts are
            longer than those it was trained on.
    """
    if not stage.start.model:
        return go_on(stage, carried, folder, out)
    embedder = loaded(stage.start.model)
    longest = max(stage.data.query_length, stage.data.document_length)
    if longest > embedder.model.config.trained_positions:
        raise ValueError(
            f"{stage.name} has texts of {longest} tokens, {stage.start.model} was "
            f"trained on up to {embedder.model.config.trained_positions}"
        )
    model = embedder.model
    if stage.start.num_experts:
        dtype, seed = default_dtype(), stage.train.seed
        model = replicate_on_local_devices(
            upcycled_encoder(stage.start, seed=seed, dtype=dtype)
        )
    return dataclasses.replace(
        carried or PipelineState(embedder.tokenizer, held_out=()),
        tokenizer=embedder.tokenizer,
        model=model,
        embedding=embedder.config,
    )


def trained_mlm(
    stage: MlmStage, carried: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
    """Train a masked language model, and measure its encoder before and after.

    Args:
        stage: the whole recipe.
        carried: the tokenizer, and what the encoder is measured on.
        folder: of the stage.
        out: of the run, which holds the stores of a prepare stage.

    Raises:
        ValueError: the stores or the devices do not fit the stage.
        SystemExit: with status 75 after a signal, once the state is saved.
    """

    def begin() -> MaskedLanguageModel:
        return first_model(stage, carried.tokenizer, dtype=default_dtype())

    named = stage.start.model
    first = hosts.run_on_all_hosts(named or "fresh model", begin)
    if named and hosts.count() > 1:
        hosts.assert_equal_across_hosts(
            f"weights of {named}", {"digest": digest(first)}
        )
    carried = dataclasses.replace(
        carried, model=replicate_on_local_devices(first.encoder)
    )
    label = f"before {stage.name}" if named else "random weights"
    carried = measured(carried, label, folder, "evaluation_before.json")
    stage = with_memory_settings(
        stage, first.encoder.config, carried.embedder.config, folder
    )
    first.encoder.remat = stage.memory.remat
    stores = stores_of(stage.data.stores, TEXT, out)
    model = train_mlm(
        stage,
        first,
        carried.tokenizer,
        stores,
        folder,
        evaluate=while_training(carried, stage.train.tasks),
    )
    carried = dataclasses.replace(
        carried, model=replicate_on_local_devices(model.encoder)
    )
    return measured(carried, f"after {stage.name}", folder)


def trained_contrastive(
    stage: ContrastiveStage, carried: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
    """Train the encoder so far on pairs, and measure it; see `trained_mlm`."""
    if stage.start.model:
        label = f"before {stage.name}"
        carried = measured(carried, label, folder, "evaluation_before.json")
    stores = stores_of(stage.data.stores, PAIRS, out)
    embedder = carried.embedder
    trained = dataclasses.replace(
        carried, embedding=stage_embedding(stage, embedder.config)
    )
    frozen = {section: loaded(named) for section, named in frozen_models(stage).items()}
    encoders = {
        section: FrozenEncoder(other.model, other.config)
        for section, other in frozen.items()
    }
    stage = with_memory_settings(
        *(stage, embedder.model.config, trained.embedder.config, folder),
        frozen=Frozen(**encoders),
    )
    model = train_contrastive(
        stage,
        embedder.model,
        carried.tokenizer,
        embedder.config,
        stores,
        folder,
        evaluate=while_training(trained, stage.train.tasks),
        **{section: (other.model, other.config) for section, other in frozen.items()},
    )
    carried = dataclasses.replace(trained, model=replicate_on_local_devices(model))
    return measured(carried, f"after {stage.name}", folder)


def _mlm_misplaced(stage: MlmStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    if is_trained(earlier):
        yield f"{stage.name} would discard what is trained: it starts afresh"
    if not is_place(stage.data.stores):
        yield from misgiven(stage, stage.data.stores, earlier)


def _contrastive_misplaced(
    stage: ContrastiveStage, earlier: Mapping[str, Stage]
) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    if not is_trained(earlier) and not stage.start.model:
        yield untrained(stage, "start.model")
    yield from _too_long(stage, earlier)
    if not is_place(stage.data.stores):
        yield from misgiven(stage, stage.data.stores, earlier)


def _too_long(stage: ContrastiveStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    longest = max(stage.data.query_length, stage.data.document_length)
    for other in earlier.values():
        if (
            isinstance(other, MlmStage)
            and not stage.start.model
            and longest > other.model.trained_positions
        ):
            yield (
                f"{stage.name} has texts of {longest} tokens, {other.name} a model "
                f"of trained_positions={other.model.trained_positions}"
            )


MLM = StageKind("mlm", MlmStage, _mlm_misplaced, trained_mlm, begin=from_stores)
CONTRASTIVE = StageKind(
    "contrastive",
    ContrastiveStage,
    _contrastive_misplaced,
    trained_contrastive,
    begin=from_model,
)
