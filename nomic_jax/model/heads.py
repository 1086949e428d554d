"""What sits on the encoder: the frame of all heads, and the masked-language-model head.

    logits = norm(activation(dense(h))) @ word_table.T  (+ bias)

The activation is SiLU on a SwiGLU encoder and exact GELU on others (Devlin et al. 2018,
arXiv:1810.04805, and its code). The published nomic-bert-2048 has neither of the two
biases; ModernBERT has the decoder's alone (Warner et al. 2024, arXiv:2412.13663).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Key

from nomic_jax.batch import Tokens
from nomic_jax.config import ModelConfig
from nomic_jax.model.block import layer_norm
from nomic_jax.model.encoder import FLOAT32, NomicBert, Remat
from nomic_jax.model.linear import Linear, output_deviation


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
