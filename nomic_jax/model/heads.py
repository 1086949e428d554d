"""What is put on the encoder: the heads of BERT, XLM-R, NomicBERT and ModernBERT.

    masked tokens:          norm(activation(dense(h))) @ word_table.T  (+ bias)
    pooler:                 tanh(dense(h[0]))
    next sentence:          pooled @ kernel + bias, two scores: it is next, it is not
    post-norm, of a text:   dropout(pooled) @ kernel + bias
    post-norm, of tokens:   dropout(h) @ kernel + bias
    pre-norm:               dropout(norm(gelu(dense(x)))) @ kernel + bias

The MLM activation is SiLU on a SwiGLU encoder and exact GELU on others (Devlin et al.
2018, arXiv:1810.04805, sections 3.1 and 4, and its code). The published nomic-bert-2048
has neither of the two biases; ModernBERT has the decoder's alone (Warner et al. 2024,
arXiv:2412.13663, and its code). In ModernBERT's classifiers `x` is each token, or of a
text the first token or the mean. Only post-norm models have a pooler.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Key

from nomic_jax.batch import Tokens, as_pytree
from nomic_jax.config import Head, ModelConfig
from nomic_jax.model.encoder import FLOAT32, NomicBert, Remat, drop, fold, layer_norm
from nomic_jax.model.layers import Linear, output_deviation
from nomic_jax.model.pooling import mean_pool


class Transform(nnx.Module):
    """The layer before a decoder, and before the classifiers of pre-norm models."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights; a bias is zero."""
        self.dense = Linear(
            (config.width,),
            (config.width,),
            deviation=output_deviation(config),
            bias=config.head_bias and config.norm_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(config, rngs)
        self.silu = config.activation == "swiglu"

    def transform(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Apply the layer to each hidden state."""
        x = self.dense(hidden)
        x = jax.nn.silu(x) if self.silu else jax.nn.gelu(x, approximate=False)
        return self.norm(x).astype(hidden.dtype)


class MlmHead(Transform):
    """Scores over the vocabulary; the word table, the encoder's, is an argument."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights; biases, where the config has them, are zero."""
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.bias = (
            nnx.Param(jnp.zeros(config.vocab_size)) if config.head_bias else None
        )

    def __call__(
        self, hidden: Float[Array, "*rows D"], word_table: Float[Array, "V D"]
    ) -> Float32[Array, "*rows V"]:
        """Score each hidden state against every token of the vocabulary."""
        # Tokens as one axis: see `linear`, which tells what two would cost.
        x = self.transform(hidden.reshape(-1, hidden.shape[-1]))
        logits = jnp.matmul(
            x, word_table.T.astype(x.dtype), preferred_element_type=jnp.float32
        )
        if self.bias is not None:
            logits += jnp.broadcast_to(self.bias[...], logits.shape)
        return logits.reshape(*hidden.shape[:-1], -1)


class EncoderWithHead(nnx.Module):
    """An encoder and what reads its hidden states; a pytree, as the encoder is.

    Each row is one text: heads of a whole text read the row's first token, or its mean.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = FLOAT32,
        remat: Remat = "none",
    ):
        """Draw fresh weights; arguments are those of `NomicBert`."""
        self.encoder = NomicBert(config, rngs=rngs, dtype=dtype, remat=remat)
        self.add_head(config, dtype=jnp.dtype(dtype), rngs=rngs)

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the head's weights."""
        raise NotImplementedError

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Any:
        """Score hidden states that the encoder gave: the head's half of `scores`.

        Args:
            hidden: of every column; what padding scores means nothing.
            mask: True where there is a token.
            dropout_keys: those the encoder was given; the head folds its own from them.
        """
        raise NotImplementedError

    def scores(
        self, tokens: Tokens, *, dropout_keys: Key[Array, "B S"] | None = None
    ) -> Any:
        """Encode texts and score them, in float32.

        Args:
            tokens: one text a row.
            dropout_keys: a key for each token, consumed; None leaves dropout off, the
                encoder's and the head's.

        Raises:
            ValueError: a row is longer than the encoder's positions.
        """
        hidden = self.encoder(tokens, dropout_keys=dropout_keys)
        mask = jnp.asarray(tokens.mask)
        return self.head_scores(hidden, mask, dropout_keys=dropout_keys)


class MaskedLanguageModel(EncoderWithHead):
    """The encoder with its MLM head; `scores` are B S V, over the vocabulary."""

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the head's weights; its decoder is the encoder's word table."""
        self.head = MlmHead(config, dtype=dtype, rngs=rngs)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float32[Array, "*rows V"]:
        """Score hidden states of the encoder, all of them or those at masked places."""
        return self.head(hidden, self.encoder.word_embedding.embedding[...])

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float32[Array, "B S V"]:
        """Score every token against the vocabulary; the head has no dropout."""
        return self.logits(hidden)


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


HEAD = 2  # folded into the keys of dropout; the encoder folds 0 and 1


class TextClassifier(EncoderWithHead):
    """Classes of a text, or the numbers it has: `scores` are B labels."""

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the weights of the pooler or the transform, and of the classes."""
        layer = Transform if config.pre_norm else Pooler
        first = layer(config, dtype=dtype, rngs=rngs)
        self.head = first if isinstance(first, Transform) else None
        self.pooler = first if isinstance(first, Pooler) else None
        self.classifier = last_layer(config, _num_scores(config), rngs=rngs)

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float32[Array, "B ..."]:
        """Score each row; its vector is dropped by the key of its first token."""
        keys = None if dropout_keys is None else fold(dropout_keys[:, :1], HEAD)
        vector = self._vector(hidden, mask)[:, None]  # B 1 D
        vector = drop(vector, self.encoder.config.head_dropout, keys)
        return self.classifier(vector)[:, 0]

    def _vector(self, hidden, mask):
        if self.pooler is not None:
            return self.pooler.pool(hidden)
        assert self.head is not None
        if self.encoder.config.head_pooling == "mean":
            return self.head.transform(mean_pool(hidden, mask).astype(hidden.dtype))
        return self.head.transform(hidden[:, 0])


class ChoiceScorer(TextClassifier):
    """How well each text answers: `scores` are B, one a row.

    A question with `n` choices is `n` rows, each the question and one of them; those
    `n` scores are the question's logits.
    """

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float32[Array, "B"]:
        """Score each row; see `TextClassifier`."""
        return super().head_scores(hidden, mask, dropout_keys=dropout_keys)[:, 0]


class TokenClassifier(EncoderWithHead):
    """Classes of each token, B S labels; or the start and end of an answer, B S 2."""

    def add_head(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """Draw the weights of the classes and, on pre-norm models, the transform."""
        self.head = (
            Transform(config, dtype=dtype, rngs=rngs) if config.pre_norm else None
        )
        self.classifier = last_layer(config, _num_scores(config), rngs=rngs)

    def head_scores(
        self,
        hidden: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float32[Array, "B S scores"]:
        """Score each token; what is at padding means nothing."""
        if self.head is not None:
            hidden = self.head.transform(hidden)
        keys = None if dropout_keys is None else fold(dropout_keys, HEAD)
        return self.classifier(drop(hidden, self.encoder.config.head_dropout, keys))


def _num_scores(config: ModelConfig) -> int:
    """Return how many a text or a token gets: one a label, two for an answer's ends."""
    fixed = {"question_answering": 2, "multiple_choice": 1}
    return fixed.get(config.head or "", len(config.labels))


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
