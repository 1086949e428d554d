"""An encoder's stage within a run: what it begins with, its training, its figures.

All hosts train; each measurement is the first one's, on its own devices.
"""

import dataclasses

from nomic_jax import hosts
from nomic_jax.backend import default_dtype
from nomic_jax.embedder import Embedder
from nomic_jax.held_out import measured, while_training
from nomic_jax.memory_budget import with_memory_settings
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.own_devices import digest, on_own_devices
from nomic_jax.preflight import frozen_models, stores_of
from nomic_jax.results import Carried
from nomic_jax.storage import join, read_bytes
from nomic_jax.store.collection import PAIRS, TEXT
from nomic_jax.store.store import open_stores
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.contrastive import (
    ContrastiveStage,
    stage_embedding,
    train_contrastive,
)
from nomic_jax.training.frozen import Frozen, FrozenEncoder
from nomic_jax.training.mlm import MlmStage, first_model, train_mlm
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import upcycled_encoder


def from_stores(stage: MlmStage) -> Carried:
    """Begin without a prepare stage: the stores bring their tokenizer along."""
    open_stores(stage.data.stores)  # says what is missing, if anything is
    return Carried(tokenizer_in(stage.data.stores), held_out=())


def loaded(model: str) -> Embedder:
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


def tokenizer_in(folder: str) -> TextTokenizer:
    """Load the tokenizer of a stage's folder, or of a collection of stores."""
    place = join(folder, "tokenizer.json")
    return TextTokenizer.from_json(read_bytes(place).decode(), place=place)


def from_model(stage: ContrastiveStage, carried: Carried | None) -> Carried:
    """Begin, or go on, with a model that was trained elsewhere.

    Raises:
        ValueError: it is no model that can be trained, or the stage's texts are longer
            than those it was trained on.
    """
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
        model = on_own_devices(upcycled_encoder(stage.start, seed=seed, dtype=dtype))
    return dataclasses.replace(
        carried or Carried(embedder.tokenizer, held_out=()),
        tokenizer=embedder.tokenizer,
        model=model,
        embedding=embedder.config,
    )


def trained_mlm(
    stage: MlmStage, carried: Carried, folder: RunFolder, out: str
) -> Carried:
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
    first = hosts.together(named or "fresh model", begin)
    if named and hosts.count() > 1:
        hosts.agree(f"weights of {named}", {"digest": digest(first)})
    carried = dataclasses.replace(carried, model=on_own_devices(first.encoder))
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
    carried = dataclasses.replace(carried, model=on_own_devices(model.encoder))
    return measured(carried, f"after {stage.name}", folder)


def trained_contrastive(
    stage: ContrastiveStage, carried: Carried, folder: RunFolder, out: str
) -> Carried:
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
    beside = {
        section: FrozenEncoder(other.model, other.config)
        for section, other in frozen.items()
    }
    stage = with_memory_settings(
        *(stage, embedder.model.config, trained.embedder.config, folder),
        frozen=Frozen(**beside),
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
    carried = dataclasses.replace(trained, model=on_own_devices(model))
    return measured(carried, f"after {stage.name}", folder)
