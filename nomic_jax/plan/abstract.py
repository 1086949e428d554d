"""A training stage's step on devices that are not here: its arrays as shapes alone."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from nomic_jax.batch import MlmBatch, PairBatch
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.model.attention_backend import Platform
from nomic_jax.model.attention_choice import set_attention
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.plan.assumed import (
    Assumptions,
    TrainingStage,
    mlm_batch,
    pair_batch,
    row_length,
)
from nomic_jax.plan.models import frozen_of, model_of
from nomic_jax.sharding import batch_specs, row_parts
from nomic_jax.training.experts import check_experts
from nomic_jax.training.flops import forward_flops, mixing_flops
from nomic_jax.training.frozen import Frozen
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.mlm_objective import mlm_objective
from nomic_jax.training.optimizer import make_optimizer
from nomic_jax.training.placement import Placement, state_places
from nomic_jax.training.steps import (
    BiEncoder,
    TrainState,
    bound_scale,
    contrastive_objective,
    make_update,
)

DTYPE = jnp.dtype("bfloat16")  # of matmuls, as on every accelerator


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a stage on devices that are not here."""

    stage: TrainingStage
    mesh: Mesh | None
    update: Any  # jitted, of state, batch and frozen
    state: TrainState  # of shapes, each with its sharding
    frozen: tuple[Frozen, ...]  # encoders beside the trained one, or nothing
    batch: MlmBatch | PairBatch
    tokens: int  # real ones of a step
    rows: int  # that a device takes in all
    twice: bool  # microbatches compute the forward pass again
    columns: int  # of all rows, padding counted
    flops: float  # of the model in a step, both ways
    repeated: float  # of what memory settings have computed again
    assumed: str  # of the data
    attention: str  # what computes it


def abstract_step(
    stage: TrainingStage,
    before: Sequence[TrainingStage],
    devices: Sequence[Any],
    assumed: Assumptions,
) -> Step:
    """Lay a stage's step out over devices, which may be another machine's.

    Args:
        stage: with its mesh and memory settings.
        before: the training stages that precede it.
        devices: to compile for.
        assumed: of the data.

    Raises:
        ValueError: the mesh does not fit the devices or the model, the batch does not
            split over it, or a row holds more tokens than are taken at once.
    """
    config, embedding = model_of(stage, before, assumed)
    frozen = frozen_of(stage, assumed, dtype=DTYPE)
    return step_of_model(stage, config, embedding, frozen, devices, assumed)


def step_of_model(
    stage: TrainingStage,
    config: ModelConfig,
    embedding: EmbeddingConfig,
    frozen: Frozen,
    devices: Sequence[Any],
    assumed: Assumptions,
    *,
    dtype: jnp.dtype = DTYPE,
) -> Step:
    """Lay out the step of a stage whose model is known; see `abstract_step`.

    Args:
        stage: with its mesh and memory settings.
        config: of the model that it trains.
        embedding: how that embeds; an MLM stage does not ask.
        frozen: shapes of the encoders beside it.
        devices: to compile for.
        assumed: of the data.
        dtype: of products.
    """
    experts = check_experts(stage.name, config, stage.experts, stage.mesh)
    settings = stage.train
    placement = Placement.of(
        stage.mesh,
        stage.memory,
        batch_size=settings.batch_size,
        row_length=row_length(stage),
        devices=devices,
    )
    mesh, platform = placement.mesh, platform_of(devices[0])
    optimizer = make_optimizer(stage.optimizer, settings.steps)
    if isinstance(stage, MlmStage):
        objective = mlm_objective(placement, experts=experts)
        project = None
        batch, lengths, assumption = mlm_batch(stage)
        masked = round(stage.data.mask_rate * lengths.sum())
    else:
        objective = contrastive_objective(
            embedding,
            stage.loss,
            placement,
            distillation=stage.teacher,
            experts=experts,
        )
        project = bound_scale(stage.loss)
        batch, lengths, assumption = pair_batch(stage, row_parts(mesh), assumed)
        masked = 0
    tokens = batch.tokens if isinstance(batch, MlmBatch) else batch.texts.tokens

    def fresh() -> TrainState:
        rngs, remat = nnx.Rngs(0), stage.memory.remat
        if isinstance(stage, MlmStage):
            model = MaskedLanguageModel(config, rngs=rngs, dtype=dtype, remat=remat)
        else:
            encoder = NomicBert(config, rngs=rngs, dtype=dtype, remat=remat)
            model = BiEncoder.of(encoder, stage.loss)
        return TrainState.fresh(model, optimizer)

    # Frozen encoders are a further argument of the step, where there are any.
    others = [each for each in (frozen.guide, frozen.teacher) if each is not None]
    state = jax.eval_shape(fresh), (frozen,) if others else ()
    encoder = state[0].model.encoder
    for each in (encoder, *(other.encoder for other in others)):
        each.platform = platform
    attention = set_attention(
        encoder,
        stage.compute.attention,
        rows=[(row_length(stage), tokens.texts)],
        devices=len(devices),
    )
    if mesh is None:
        one = SingleDeviceSharding(devices[0])
        places, batch_places = (jax.tree.map(lambda _: one, x) for x in (state, batch))
    else:
        places = state_places(state, mesh)
        # One type at a time, for the type checker.
        specs = (
            batch_specs(batch) if isinstance(batch, MlmBatch) else batch_specs(batch)
        )
        batch_places = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
    forward = forward_flops(config, lengths, masked=masked)
    again = {"none": 0.0, "dots": mixing_flops(config, lengths)}
    again["full"] = forward_flops(config, lengths)
    rows = tokens.ids.shape[0] // row_parts(mesh)
    twice = not isinstance(stage, MlmStage) or experts is not None
    once = sum(forward_flops(each.encoder.config, lengths) for each in others)
    placed, further = jax.tree.map(_placed, state, places)
    return Step(
        stage,
        mesh,
        make_update(
            objective, optimizer, seed=settings.seed, mesh=mesh, project=project
        ),
        placed,
        further,
        jax.tree.map(_placed, batch, batch_places),
        tokens=int(lengths.sum()),
        rows=rows,
        twice=twice,
        columns=tokens.ids.size,
        flops=3 * forward + once,
        repeated=forward * (twice and placement.in_parts(rows))
        + again[stage.memory.remat],
        assumed=assumption,
        attention=attention,
    )


def platform_of(device: Any) -> Platform:
    """Return the platform of a device as attention has it."""
    known: dict[str, Platform] = {"tpu": "tpu", "cuda": "gpu", "gpu": "gpu"}
    return known.get(device.platform, "cpu")


def _placed(array: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
