"""A training stage's step on devices that are not here, with shapes in place of arrays.

Models are their architectures, without weights. Rows of masked text are taken as full,
and texts of pairs as long as the config lets them be, unless their mean lengths are
given. Pairs are packed as training packs them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jaxtyping import Int

from nomic_jax.batch import MlmBatch, PackedTexts, PairBatch, Tokens
from nomic_jax.checkpoints.reader import headless, read_checkpoint
from nomic_jax.config import (
    PUBLISHED,
    PUBLISHED_EMBEDDINGS,
    EmbeddingConfig,
    ModelConfig,
    padded_vocabulary,
)
from nomic_jax.data.mlm import slots, texts_per_row
from nomic_jax.data.packing import pack_texts
from nomic_jax.distributed.mesh import batch_specs, row_parts
from nomic_jax.model.attention.backends import Platform
from nomic_jax.model.encoder import NomicBert, set_attention
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.contrastive import (
    BiEncoder,
    ContrastiveStage,
    Frozen,
    FrozenEncoder,
    bound_scale,
    contrastive_objective,
    stage_embedding,
)
from nomic_jax.training.experts import check_experts
from nomic_jax.training.flops import forward_flops, mixing_flops
from nomic_jax.training.mlm import MlmStage, mlm_objective, started_config
from nomic_jax.training.optimizer import make_optimizer
from nomic_jax.training.placement import Placement, state_places
from nomic_jax.training.start import config_with_experts
from nomic_jax.training.steps import TrainState, make_update

TrainingStage: TypeAlias = MlmStage | ContrastiveStage
FEWEST_TOKENS = 3  # of a text: [CLS] token [SEP]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What only the data could tell."""

    vocabulary: int = 30_522  # tokens of the tokenizer: BERT's
    query_tokens: int | None = None  # mean; None: query_length, all of it
    document_tokens: int | None = None  # mean; None: document_length, all of it
    model: str = "nomic-embed-text-v1"  # published one, for a start.model not here


def row_length(stage: TrainingStage) -> int:
    """Return the tokens of a row of the stage's batches."""
    if isinstance(stage, MlmStage):
        return stage.data.row_length
    return max(stage.data.query_length, stage.data.document_length)


def mlm_batch(stage: MlmStage) -> tuple[MlmBatch, Int[np.ndarray, " texts"], str]:
    """Return a batch's shapes, the lengths of its texts, and what was assumed."""
    rows, length = stage.train.batch_size, stage.data.row_length
    room = slots(length, stage.data.mask_rate)
    texts = texts_per_row(stage.data.documents)
    batch = jax.eval_shape(
        lambda: MlmBatch(
            Tokens(_numbers(rows, length), _numbers(rows, length), texts=texts),
            _numbers(rows, room),
            _numbers(rows, room),
            jnp.zeros((rows, room), jnp.bool_),
        )
    )
    return batch, np.full(rows, length), f"rows full, each one text of {length} tokens"


def pair_batch(
    stage: ContrastiveStage, parts: int, assumed: Assumptions
) -> tuple[PairBatch, Int[np.ndarray, " texts"], str]:
    """Return a batch's shapes, the lengths of its texts, and what was assumed.

    Raises:
        ValueError: a mean is more than the longest text has.
    """
    data, queries = stage.data, stage.train.batch_size
    documents = queries * (1 + data.num_negatives)
    sides = (
        ("queries", queries, assumed.query_tokens, data.query_length),
        ("documents", documents, assumed.document_tokens, data.document_length),
    )
    lengths = np.concatenate([spread(*side) for side in sides])
    plan = pack_texts(lengths, row_length=row_length(stage), parts=parts)
    shape, listed = (plan.rows, plan.columns), plan.places()[0].shape
    batch = jax.eval_shape(
        lambda: PairBatch(
            PackedTexts(
                Tokens(_numbers(*shape), _numbers(*shape), texts=plan.slots),
                _numbers(plan.rows, plan.slots),
            ),
            _numbers(*listed),
            _numbers(queries),
            _numbers(documents),
            _numbers(*listed, 2),
        )
    )
    said = [
        f"{side} full, {most} tokens"
        if mean is None
        else f"{side} of {mean} tokens on average, evenly spread"
        for side, _, mean, most in sides
    ]
    return batch, lengths, "; ".join(said)


def spread(
    side: str, count: int, mean: int | None, longest: int
) -> Int[np.ndarray, " texts"]:
    """Make up lengths of texts: all the longest, or even about a mean.

    Args:
        side: queries or documents, for the error.
        count: of texts.
        mean: in tokens; None: `longest`.
        longest: what the config lets a text have.

    Raises:
        ValueError: the mean is more than the longest, or less than a text can have.
    """
    if mean is None:
        return np.full(count, longest)
    if not FEWEST_TOKENS <= mean <= longest:
        option = {"queries": "--query-tokens", "documents": "--document-tokens"}[side]
        raise ValueError(
            f"{option} {mean}: {side} have {FEWEST_TOKENS} to {longest} tokens"
        )
    reach = min(longest - mean, mean - FEWEST_TOKENS)
    return np.linspace(mean - reach, mean + reach, count).round().astype(np.int64)


def _numbers(*sizes: int) -> jax.Array:
    return jnp.zeros(sizes, jnp.int32)


def model_of(
    stage: TrainingStage, before: Sequence[TrainingStage], assumed: Assumptions
) -> tuple[ModelConfig, EmbeddingConfig]:
    """Return the architecture that a stage trains, and how it embeds.

    Args:
        stage: the stage.
        before: the training stages that precede it.
        assumed: the vocabulary, and what to take for a model that is not here.

    Raises:
        ValueError: `assumed.model` is not a published model, or does not fit the stage.
    """
    if isinstance(stage, MlmStage):
        if stage.start.model:
            given = _named(stage.start.model, assumed)[0]
            config = started_config(stage.start, stage.model, given)
        else:
            config = stage.model.config(
                vocab_size=padded_vocabulary(assumed.vocabulary), pad_token_id=0
            )
        return config, _plain_embedding(config)
    if stage.start.model:
        config, embedding = named_model(stage.start.model, assumed)
        config = config_with_experts(stage.start, config)
    else:
        config, embedding = model_of(before[-1], before[:-1], assumed)
        config = headless(config)
    return config, stage_embedding(stage, embedding)


def named_model(name: str, assumed: Assumptions) -> tuple[ModelConfig, EmbeddingConfig]:
    """Return the encoder of a folder that is here, of a published model, or assumed.

    Raises:
        ValueError: it is neither, and `assumed.model` is not a published model.
    """
    config, embedding = _named(name, assumed)
    config = headless(config)
    return config, embedding or _plain_embedding(config)


def frozen_of(
    stage: TrainingStage, assumed: Assumptions, *, dtype: jnp.dtype
) -> Frozen:
    """Return the shapes of a stage's guide and teacher, or of none.

    Args:
        stage: that names them; one of MLM has none.
        assumed: what to take for a model that is not here.
        dtype: of products.

    Raises:
        ValueError: `assumed.model` is not a published model.
    """
    if isinstance(stage, MlmStage):
        return Frozen()

    def one(name: str) -> FrozenEncoder | None:
        if not name:
            return None
        config, embedding = named_model(name, assumed)
        encoder = NomicBert(config, rngs=nnx.Rngs(0), dtype=dtype)
        return FrozenEncoder(encoder, embedding)

    return jax.eval_shape(
        lambda: Frozen(one(stage.guide.model), one(stage.teacher.model))
    )


def _named(
    name: str, assumed: Assumptions
) -> tuple[ModelConfig, EmbeddingConfig | None]:
    if Path(name).is_dir():
        checkpoint = read_checkpoint(Path(name))
        return checkpoint.config, checkpoint.embedding
    name = name.rpartition("/")[2]
    name = name if name in PUBLISHED else assumed.model
    if name not in PUBLISHED:
        raise ValueError(
            f"--model {name} is not published; known: {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name], PUBLISHED_EMBEDDINGS.get(name)


def _plain_embedding(config: ModelConfig) -> EmbeddingConfig:
    return EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=config.trained_positions
    )


DTYPE = jnp.dtype("bfloat16")  # of matmuls, as on every accelerator


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a stage on devices that are not here."""

    stage: TrainingStage
    mesh: Mesh | None
    update: Any  # jitted, of state, batch and frozen
    state: TrainState  # of shapes, each with its sharding
    frozen: tuple[Frozen, ...]  # encoders next to the trained one, or nothing
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
        frozen: shapes of the encoders next to it.
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
            jax.value_and_grad(objective, has_aux=True),
            optimizer,
            seed=settings.seed,
            mesh=mesh,
            project=project,
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
