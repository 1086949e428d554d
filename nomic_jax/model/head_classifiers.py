"""Classifiers of texts, of choices and of tokens, and the answers to questions.

    post-norm, of a text:   dropout(tanh(dense(h[0]))) @ kernel + bias
    post-norm, of tokens:   dropout(h) @ kernel + bias
    pre-norm:               dropout(norm(gelu(dense(x)))) @ kernel + bias

BERT's are of Devlin et al. 2018 (arXiv:1810.04805), section 4. In ModernBERT's (Warner
et al. 2024, arXiv:2412.13663, and its code) `x` is each token, or of a text the first
token or the mean.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Key

from nomic_jax.config import ModelConfig
from nomic_jax.model.block import drop, fold
from nomic_jax.model.head_pooler import Pooler, last_layer
from nomic_jax.model.heads import EncoderWithHead, Transform
from nomic_jax.model.pooling import mean_pool

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
        """Score each token; what stands at padding means nothing."""
        if self.head is not None:
            hidden = self.head.transform(hidden)
        keys = None if dropout_keys is None else fold(dropout_keys, HEAD)
        return self.classifier(drop(hidden, self.encoder.config.head_dropout, keys))


def _num_scores(config: ModelConfig) -> int:
    """Return how many a text or a token gets: one a label, two for an answer's ends."""
    fixed = {"question_answering": 2, "multiple_choice": 1}
    return fixed.get(config.head or "", len(config.labels))
