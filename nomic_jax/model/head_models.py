"""From a config to its module: the encoder alone, or the encoder with its head."""

from collections.abc import Mapping
from typing import TypeAlias

import jax.numpy as jnp
from flax import nnx

from nomic_jax.config import Head, ModelConfig
from nomic_jax.model.encoder import FLOAT32, NomicBert, Remat
from nomic_jax.model.head_classifiers import (
    ChoiceScorer,
    TextClassifier,
    TokenClassifier,
)
from nomic_jax.model.head_pooler import (
    NextSentencePredictor,
    PooledEncoder,
    PretrainingModel,
)
from nomic_jax.model.heads import EncoderWithHead, MaskedLanguageModel

Model: TypeAlias = NomicBert | EncoderWithHead

HEADS: Mapping[Head, type[EncoderWithHead]] = {
    "pooler": PooledEncoder,
    "mlm": MaskedLanguageModel,
    "pretraining": PretrainingModel,
    "next_sentence": NextSentencePredictor,
    "sequence_classification": TextClassifier,
    "token_classification": TokenClassifier,
    "question_answering": TokenClassifier,
    "multiple_choice": ChoiceScorer,
}


def head_class(config: ModelConfig) -> type[NomicBert] | type[EncoderWithHead]:
    """Return the class of a config's module; without a head it is the encoder's."""
    return NomicBert if config.head is None else HEADS[config.head]


def make_model(
    config: ModelConfig,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = FLOAT32,
    remat: Remat = "none",
) -> Model:
    """Draw a fresh model with the head that its config names.

    Args:
        config: the model's.
        rngs: source of randomness.
        dtype: what matmuls run in; the scores of heads are float32 whatever it is.
        remat: what a layer keeps for its backward pass.
    """
    return head_class(config)(config, rngs=rngs, dtype=dtype, remat=remat)
