"""What sits on the encoder: the masked-language-model head, its decoder tied.

    logits = norm(silu(dense(h))) @ word_table.T  (+ bias)

The published nomic-bert-2048 has neither of the two biases; transformers' head has
both.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import FLOAT32, NomicBert, Remat, layer_norm


class MlmHead(nnx.Module):
    """Scores over the vocabulary; the word table, the encoder's, is an argument."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights; biases, where the config has them, are zero."""
        self.dense = nnx.Linear(
            config.width,
            config.width,
            use_bias=config.head_bias,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(config, rngs)
        self.bias = (
            nnx.Param(jnp.zeros(config.vocab_size)) if config.head_bias else None
        )

    def __call__(
        self, hidden: Float[Array, "*rows D"], word_table: Float[Array, "V D"]
    ) -> Float32[Array, "*rows V"]:
        """Score each hidden state against every token of the vocabulary."""
        # Tokens as one axis: see `linear`, which tells what two would cost.
        rows = hidden.reshape(-1, hidden.shape[-1])
        x = self.norm(jax.nn.silu(self.dense(rows))).astype(rows.dtype)
        logits = jnp.matmul(
            x, word_table.T.astype(x.dtype), preferred_element_type=jnp.float32
        )
        if self.bias is not None:
            logits += jnp.broadcast_to(self.bias[...], logits.shape)
        return logits.reshape(*hidden.shape[:-1], -1)


class MaskedLanguageModel(nnx.Module):
    """The encoder with its MLM head."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = FLOAT32,
        remat: Remat = "none",
    ):
        """Draw fresh weights."""
        self.encoder = NomicBert(config, rngs=rngs, dtype=dtype, remat=remat)
        self.head = MlmHead(config, dtype=jnp.dtype(dtype), rngs=rngs)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float32[Array, "*rows V"]:
        """Score hidden states of the encoder, all of them or those at masked places."""
        return self.head(hidden, self.encoder.word_embedding.embedding[...])
