"""BERT's pooler, and next-sentence prediction on it.

    pooled = tanh(dense(h[0]));  is next, and is not: pooled @ kernel + bias

Devlin et al. 2018 (arXiv:1810.04805), section 3.1, task 2; in pretraining the MLM head
is beside it. Only post-norm models have a pooler.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Key

from nomic_jax.batch import as_pytree
from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import FLOAT32
from nomic_jax.model.heads import EncoderWithHead, MlmHead
from nomic_jax.model.linear import Linear


class Pooler(Linear):
    """A dense layer and a tanh over the first token of each row."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights; the bias is zero."""
        super().__init__(
            (config.width,),
            (config.width,),
            deviation=config.initializer_range,
            bias=True,
            dtype=dtype,
            rngs=rngs,
        )

    def pool(self, hidden: Float[Array, "B S D"]) -> Float32[Array, "B D"]:
        """Return one vector a row, its entries between -1 and 1."""
        return jnp.tanh(self(hidden[:, 0]).astype(jnp.float32))


def last_layer(config: ModelConfig, outputs: int, *, rngs: nnx.Rngs) -> Linear:
    """Make what gives a head's scores, in float32 whatever the encoder runs in.

    Fresh weights have the encoder's deviation, or on pre-norm models, as ModernBERT's
    published classifiers have it, that which keeps the size of what goes in.
    """
    return Linear(
        (config.width,),
        (outputs,),
        deviation=config.width**-0.5 if config.pre_norm else config.initializer_range,
        bias=True,
        dtype=FLOAT32,
        rngs=rngs,
    )


class PooledEncoder(EncoderWithHead):
    """The encoder with the pooler alone; `scores` are its vectors, B D."""

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the pooler's weights."""
        self.pooler = Pooler(config, dtype=dtype, rngs=rngs)

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float32[Array, "B D"]:
        """Pool each row; the pooler has no dropout."""
        return self.pooler.pool(hidden)


class NextSentencePredictor(EncoderWithHead):
    """Whether a row's second sentence, of token type 1, follows its first.

    `scores` are B 2: of "is next", class 0, and of "is not".
    """

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the weights of the pooler and of the classes."""
        self.pooler = Pooler(config, dtype=dtype, rngs=rngs)
        self.next_sentence = last_layer(config, 2, rngs=rngs)

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float32[Array, "B 2"]:
        """Score each row; the head has no dropout."""
        return self.next_sentence(self.pooler.pool(hidden))


@as_pytree
@dataclasses.dataclass(frozen=True)
class PretrainingScores:
    """What both heads of BERT's pretraining say."""

    mlm: Float32[Array, "B S V"]
    next_sentence: Float32[Array, "B 2"]  # of "is next" and of "is not"


class PretrainingModel(EncoderWithHead):
    """The encoder with both heads of BERT's pretraining.

    Training scores the masked places alone, by `logits`, and rows by `row_scores`.
    """

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the weights of both heads and of the pooler."""
        self.head = MlmHead(config, dtype=dtype, rngs=rngs)
        self.pooler = Pooler(config, dtype=dtype, rngs=rngs)
        self.next_sentence = last_layer(config, 2, rngs=rngs)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float32[Array, "*rows V"]:
        """Score hidden states as `MaskedLanguageModel` does."""
        return self.head(hidden, self.encoder.word_embedding.embedding[...])

    def row_scores(self, hidden: Float[Array, "B S D"]) -> Float32[Array, "B 2"]:
        """Score each row as `NextSentencePredictor` does."""
        return self.next_sentence(self.pooler.pool(hidden))

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> PretrainingScores:
        """Score every token and each row; the heads have no dropout."""
        return PretrainingScores(self.logits(hidden), self.row_scores(hidden))
