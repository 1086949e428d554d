"""The models that a planned stage names: their architectures, and no weights."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from nomic_jax.checkpoints.reader import headless, read_checkpoint
from nomic_jax.config import EmbeddingConfig, ModelConfig, padded_vocabulary
from nomic_jax.model.encoder import NomicBert
from nomic_jax.plan.assumed import Assumptions, TrainingStage
from nomic_jax.published import PUBLISHED, PUBLISHED_EMBEDDINGS
from nomic_jax.training.contrastive import stage_embedding
from nomic_jax.training.frozen import Frozen, FrozenEncoder
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.mlm_model import started_config
from nomic_jax.training.start import config_with_experts


def model_of(
    stage: TrainingStage, before: Sequence[TrainingStage], assumed: Assumptions
) -> tuple[ModelConfig, EmbeddingConfig]:
    """Return the architecture that a stage trains, and how it embeds.

    Args:
        stage: the stage.
        before: the training stages that precede it.
        assumed: the vocabulary, and what to take for a model that is not here.

    Raises:
        ValueError: `assumed.model` is no published model, or does not fit the stage.
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
        ValueError: it is neither, and `assumed.model` is no published model.
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
        ValueError: `assumed.model` is no published model.
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
