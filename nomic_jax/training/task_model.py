"""A loaded encoder gets a head: what fits of the head it had is kept, the rest drawn.

Of BERT's pretraining the pooler is kept for classification, and of ModernBERT's the
transform, as their own fine-tuning does. A classifier is kept where it tells the same.
"""

import dataclasses
from collections.abc import Mapping

import jax
from flax import nnx

from nomic_jax.checkpoints.folder import parameters
from nomic_jax.checkpoints.reader import headless
from nomic_jax.config import ModelConfig
from nomic_jax.data.task_config import (
    CLASSIFIERS,
    MASKED,
    SENTENCES,
    HeadConfig,
    TaskData,
)
from nomic_jax.model.encoder import NomicBert, Remat
from nomic_jax.model.head_models import Model, make_model
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.training.optimizer import like_named, named_arrays


def check_model(
    stage: str,
    head: HeadConfig,
    data: TaskData,
    *,
    trained_positions: int,
    type_vocab_size: int,
    stretched: bool = False,
) -> None:
    """Refuse a model whose positions or token types are too few for a stage.

    Args:
        stage: its name, for errors.
        head: that it trains.
        data: lengths of its rows.
        trained_positions: of the model.
        type_vocab_size: of the model.
        stretched: whether it takes longer rows by scaling its rotary positions.

    Raises:
        ValueError: with the numbers.
    """
    if data.max_length > trained_positions and not stretched:
        raise ValueError(
            f"{stage} has rows of max_length={data.max_length} tokens, the model was "
            f"trained on up to {trained_positions}"
        )
    if head.kind in SENTENCES and type_vocab_size < 2:
        raise ValueError(
            f"{stage}: head.kind={head.kind!r} tells two sentences by token types, of "
            f"which the model has {type_vocab_size}"
        )


def config_with_head(
    config: ModelConfig, head: HeadConfig, labels: tuple[str, ...]
) -> ModelConfig:
    """Return an encoder's config with a head in place of its own.

    The MLM head's biases are those of the family's published models.

    Args:
        config: of the encoder, with a head or without one.
        head: what to put on it.
        labels: that the head tells apart.

    Raises:
        ValueError: the encoder cannot have such a head.
    """
    bare = headless(config)
    return dataclasses.replace(
        bare,
        head=head.kind,
        head_bias=head.kind in MASKED and (bare.bias or bare.pre_norm),
        labels=labels,
        problem=head.problem,
        head_pooling=head.pooling,
        head_dropout=head.dropout if head.kind in CLASSIFIERS else 0.0,
    )


def with_head(
    loaded: Model, config: ModelConfig, *, seed: int, remat: Remat, keep: bool = True
) -> tuple[EncoderWithHead, tuple[str, ...]]:
    """Give a model the head that a config names.

    Args:
        loaded: with another head, with none, or with the same; its arrays go on living
            in the result.
        config: of the same encoder with the head.
        seed: of what is drawn.
        remat: what a layer keeps for its backward pass.
        keep: whether the loaded weights are used; else all is drawn.

    Returns:
        The model, and the names of the parameters that were drawn.
    """
    encoder = loaded if isinstance(loaded, NomicBert) else loaded.encoder
    had = encoder.config

    @jax.jit
    def draw() -> Model:
        rngs = nnx.Rngs(seed)
        return make_model(config, rngs=rngs, dtype=encoder.dtype, remat=remat)

    fresh = draw()
    assert isinstance(fresh, EncoderWithHead)
    arrays: Mapping[str, jax.Array] = named_arrays(fresh)
    known = parameters(loaded) if keep else {}
    same = (had.head, had.labels, had.problem) == (
        *(config.head, config.labels, config.problem),
    )
    kept = {
        name: known[name]
        for name, array in arrays.items()
        if name in known
        and known[name].shape == array.shape
        and (same or not name.startswith("classifier."))
    }
    assert not keep or all(name in kept for name in arrays if _of_encoder(name))
    drawn = tuple(name for name in arrays if name not in kept)
    return like_named(fresh, {**arrays, **kept}), drawn


def _of_encoder(name: str) -> bool:
    return name.startswith("encoder.")
