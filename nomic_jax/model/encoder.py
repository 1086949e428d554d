"""NomicBERT and BERT: post-norm encoders whose layers are scanned.

    h = LN(word[ids] + type[type_ids]  (+ position[place in the text]))
    h = LN(h + attention(h));  h = LN(h + mlp(h))        for each layer, no final norm

NomicBERT has rotary positions, SwiGLU and no biases (Nussbaum et al. 2024,
arXiv:2402.01613, section 3); BERT and XLM-R have absolute positions, GELU and biases
(Devlin et al. 2018, arXiv:1810.04805). The parameters of all layers are stacked on a
leading axis, so there is one array per kind of parameter.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from nomic_jax.batch import Tokens, positions_and_lengths
from nomic_jax.config import ModelConfig
from nomic_jax.model.attention import Attention
from nomic_jax.model.mlp import Mlp
from nomic_jax.model.rope import Turns, rotations

FLOAT32 = jnp.dtype("float32")

# What a layer keeps for its backward pass: all it computed, or its input alone.
Remat = Literal["none", "full"]


def layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm in float32, with the two-pass variance that PyTorch computes."""
    return nnx.LayerNorm(
        config.width,
        epsilon=config.layer_norm_epsilon,
        use_fast_variance=False,
        dtype=jnp.float32,
        rngs=rngs,
    )


class Block(nnx.Module):
    """One layer, the norm after each residual sum."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draw fresh weights."""
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(config, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(config, rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B S D"],
        segment_ids: Int[Array, "B S"],
        turns: Turns | None,
        dropout_keys: Key[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Apply the layer; the arguments after `x` are those of `Attention`."""
        for_attention, for_mlp = _split(dropout_keys, 2)
        mixed = self.attention(x, segment_ids, turns)
        mixed = drop(mixed, self.dropout, for_attention)
        x = self.attention_norm(x + mixed).astype(x.dtype)
        mixed = drop(self.mlp(x), self.dropout, for_mlp)
        return self.mlp_norm(x + mixed).astype(x.dtype)


class NomicBert(nnx.Module):
    """The encoder, usable as a pytree under `jax.jit`, `jax.grad` and friends.

    Weights are float32. `dtype` is what matmuls run in: float32 by default, bfloat16
    for accelerators; norms, softmax and rotations are float32 either way.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = FLOAT32,
        remat: Remat = "none",
    ):
        """Draw fresh weights: N(0, initializer_range), the padding row zero."""
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        init = nnx.initializers.normal(config.initializer_range)

        def word_init(key, shape, dtype):
            return init(key, shape, dtype).at[config.pad_token_id].set(0)

        self.word_embedding = nnx.Embed(
            config.vocab_size, config.width, embedding_init=word_init, rngs=rngs
        )
        self.type_embedding = nnx.Embed(
            config.type_vocab_size, config.width, embedding_init=init, rngs=rngs
        )
        rows = config.first_position + config.trained_positions
        self.position_embedding = (
            nnx.Embed(rows, config.width, embedding_init=init, rngs=rngs)
            if config.rope_base is None
            else None
        )
        self.embedding_norm = layer_norm(config, rngs)
        self.blocks = jax.vmap(
            lambda layer: Block(config, dtype=self.dtype, rngs=layer)
        )(rngs.split(config.num_layers))

    def __call__(
        self, tokens: Tokens, *, dropout_keys: Key[Array, "B S"] | None = None
    ) -> Float[Array, "B S D"]:
        """Encode every token in the light of its own text.

        Args:
            tokens: rows of one or several texts each.
            dropout_keys: a key for each token, consumed; None leaves dropout off.

        Returns:
            The last hidden states in `dtype`; at padding they are finite and mean
            nothing.

        Raises:
            ValueError: a row is longer than the trained positions and the config has no
                `rope_scaling_factor`.
        """
        config = self.config
        if tokens.ids.shape[1] > config.trained_positions:
            _check_length(config, tokens.ids.shape[1])
        segment_ids = jnp.asarray(tokens.segment_ids)
        x = self.word_embedding.embedding[...][tokens.ids]
        types = self.type_embedding.embedding[...]
        x += types[None, :1] if tokens.type_ids is None else types[tokens.type_ids]
        turns = None
        if self.position_embedding is None:
            turns = rotations(config, segment_ids)
        else:
            places = config.first_position + positions_and_lengths(segment_ids)[0]
            x += self.position_embedding.embedding[...][places]
        before, within = _split(dropout_keys, 2)
        x = drop(self.embedding_norm(x).astype(self.dtype), config.dropout, before)

        def layer(x, block_and_index):
            block, index = block_and_index
            keys = None if within is None else _fold(within, index)
            return block(x, segment_ids, turns, keys), None

        if self.remat == "full":
            layer = jax.checkpoint(layer)
        layers = (self.blocks, jnp.arange(config.num_layers))
        return jax.lax.scan(layer, x, layers)[0]


def drop(
    x: Float[Array, "B S D"], rate: float, keys: Key[Array, "B S"] | None
) -> Float[Array, "B S D"]:
    """Zero a share `rate` of each token by its own key; scale up what stays."""
    if keys is None or rate == 0:
        return x
    width = x.shape[2:]
    draw = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, width)))
    keep = draw(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def _split(keys, count):
    """Make `count` sets of the tokens' keys from one, or as many Nones."""
    if keys is None:
        return (None,) * count
    return tuple(_fold(keys, number) for number in range(count))


def _fold(keys, number):
    """Fold a number into the key of each token."""
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys)


def _check_length(config: ModelConfig, length: int) -> None:
    if config.rope_base is None:
        raise ValueError(
            f"rows of {length} tokens exceed the {config.trained_positions} absolute "
            "positions of the model; cut them"
        )
    if config.rope_scaling_factor is None:
        raise ValueError(
            f"rows of {length} tokens exceed the {config.trained_positions} the model "
            "was trained on; cut them, or set rope_scaling_factor (2.0 is the "
            "published choice) to stretch its rotary positions"
        )
