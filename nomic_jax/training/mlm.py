"""The MLM stage: a fresh encoder, or BERT or XLM-R, learns to fill gaps in packed text.

Nomic Embed, arXiv:2402.01613, section 3.3. Where it starts with BERT or XLM-R, rotary
positions take the place of the absolute ones.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from nomic_jax.config import padded_vocabulary
from nomic_jax.data.mlm import Documents, Masking, MlmBatches, texts_per_row
from nomic_jax.data.schedule import Sampling, Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.sharding import MeshConfig, host_share, put_batch
from nomic_jax.store.store import Store
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.compute import ComputeConfig
from nomic_jax.training.experts import ExpertsConfig, check_experts
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.mlm_model import ModelSize, started_model
from nomic_jax.training.mlm_objective import mlm_objective
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
)
from nomic_jax.training.placement import MemoryConfig, Placement, place_state
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import StartConfig
from nomic_jax.training.steps import TrainState, make_update


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlmData:
    """Packed rows and how they are corrupted."""

    stores: str  # the prepare stage that made them, or a folder or URL of stores
    row_length: int  # tokens of a packed row
    mask_rate: float = 0.3  # share of the tokens that is to be predicted
    documents: Documents = "joined"  # in a row: whether they see one another

    def __post_init__(self) -> None:
        """Refuse rows of nothing, and a rate that leaves nothing to do.

        Raises:
            ValueError: with the number.
        """
        if self.row_length < 1:
            raise ValueError(f"row_length={self.row_length} must be at least 1")
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be in (0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlmStage:
    """Masked-language-model training on the prepared text."""

    name: str
    model: ModelSize
    data: MlmData
    optimizer: OptimizerConfig
    train: LoopConfig
    sampling: Sampling = Sampling()
    start: StartConfig = StartConfig()
    experts: ExpertsConfig = ExpertsConfig()
    mesh: MeshConfig = MeshConfig()
    memory: MemoryConfig = MemoryConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        """Refuse rows longer than the model's positions, before any text is read.

        Raises:
            ValueError: with both numbers.
        """
        if self.data.row_length > self.model.trained_positions:
            raise ValueError(
                f"{self.name}: data.row_length={self.data.row_length} exceeds "
                f"model.trained_positions={self.model.trained_positions}"
            )


def first_model(
    stage: MlmStage, tokenizer: TextTokenizer, *, dtype: str
) -> MaskedLanguageModel:
    """Return the model that a stage begins with.

    Raises:
        ValueError: `start.model` does not fit the stage; see `started_model`.
    """
    if not stage.start.model:
        return fresh_model(stage, tokenizer, dtype=dtype)
    return started_model(
        stage.start,
        stage.model,
        tokenizer,
        seed=stage.train.seed,
        dtype=dtype,
        remat=stage.memory.remat,
    )


def fresh_model(
    stage: MlmStage, tokenizer: TextTokenizer, *, dtype: str
) -> MaskedLanguageModel:
    """Draw the stage's model, keyed by its seed."""
    config = stage.model.config(
        vocab_size=padded_vocabulary(tokenizer.size),
        pad_token_id=tokenizer.role_id("pad"),
    )

    @jax.jit
    def draw() -> MaskedLanguageModel:
        rngs = nnx.Rngs(stage.train.seed)
        model = MaskedLanguageModel(config, rngs=rngs, dtype=jnp.dtype(dtype))
        model.encoder.remat = stage.memory.remat
        return model

    return draw()


def mlm_batches(
    stage: MlmStage,
    stores: Mapping[str, Store],
    tokenizer: TextTokenizer,
    mesh: Mesh | None = None,
) -> MlmBatches:
    """Plan this host's part of the stage's batches.

    Raises:
        ValueError: a store does not fill one batch, is of another tokenizer, or does
            not hold rows of the stage's length.
    """
    for store in stores.values():
        store.check_tokenizer(tokenizer.digest)
    host, hosts = host_share(mesh)
    schedule = Schedule.over(
        {name: len(store) for name, store in stores.items()},
        batch_size=stage.train.batch_size,
        seed=stage.train.seed,
        sampling=stage.sampling,
    )
    masking = Masking(
        rate=stage.data.mask_rate,
        mask_id=tokenizer.role_id("mask"),
        vocab_size=tokenizer.size,
        special_ids=tokenizer.special_ids,
        seed=stage.train.seed,
    )
    return MlmBatches(
        stores,
        schedule,
        masking,
        row_length=stage.data.row_length,
        documents=stage.data.documents,
        host=host,
        hosts=hosts,
    )


def train_mlm(
    stage: MlmStage,
    model: MaskedLanguageModel,
    tokenizer: TextTokenizer,
    stores: Mapping[str, Store],
    folder: RunFolder,
    *,
    evaluate: Callable[[NomicBert], Mapping[str, float]] | None = None,
) -> MaskedLanguageModel:
    """Train a model on packed rows, from the folder's newest checkpoint if it has one.

    Args:
        stage: the whole recipe.
        model: where training starts; consumed.
        tokenizer: whose ids the model knows.
        stores: of packed rows, by source.
        folder: where metrics and checkpoints go.
        evaluate: measures the encoder, every `train.evaluate_every` steps.

    Raises:
        ValueError: the stores do not fit the stage (see `mlm_batches`), or are not
            those it began with; the mesh does not fit the devices or the model; experts
            are to be balanced or split where there are none.
    """
    settings = stage.train
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=settings.batch_size,
        row_length=stage.data.row_length,
    )
    batch_at = mlm_batches(stage, stores, tokenizer, placement.mesh)
    folder.pin_stores(stores)
    stage.compute.of(
        model.encoder,
        stage=stage.name,
        row_length=stage.data.row_length,
        texts=texts_per_row(stage.data.documents),
        mesh=placement.mesh,
    )
    config = model.encoder.config
    experts = check_experts(stage.name, config, stage.experts, stage.mesh)
    optimizer = make_optimizer(stage.optimizer, settings.steps)
    state = train(
        stage.name,
        place_state(TrainState.fresh(model, optimizer), placement.mesh),
        make_update(
            mlm_objective(placement, experts=experts),
            optimizer,
            seed=settings.seed,
            mesh=placement.mesh,
        ),
        batch_at,
        settings,
        folder,
        learning_rate=learning_rate(stage.optimizer, settings.steps),
        place=lambda batch: put_batch(batch, placement.mesh),
        evaluate=evaluate and (lambda state: evaluate(state.model.encoder)),
        flops_per_token=functools.partial(flops_per_token, config),
    )
    return state.model
