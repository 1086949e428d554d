"""One layer of an encoder: attention and an MLP, each with its norm and its residual.

Post-norm as in Vaswani et al. 2017 (arXiv:1706.03762), section 3.1, or pre-norm (Xiong
et al. 2020, arXiv:2002.04745).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from nomic_jax.batch import FIXED, as_pytree
from nomic_jax.config import ModelConfig
from nomic_jax.model.attention import ANY_TEXTS, Attention
from nomic_jax.model.attention_backend import Setting
from nomic_jax.model.layers import LayerPlace
from nomic_jax.model.mlp import Mlp
from nomic_jax.model.moe import MixtureOfExperts
from nomic_jax.model.rope import Turns
from nomic_jax.model.routing import RoutingSums


@as_pytree
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer is told of its tokens."""

    segment_ids: Int[Array, "B S"]
    counted: Bool[Array, "B S"] | None  # tokens that routing sums count; None: all
    turns: Turns | None  # of global layers; None: positions are absolute
    local_turns: Turns | None  # of local layers, where there are any
    dropout_keys: Key[Array, "B S"] | None  # None: dropout is off
    setting: Setting = dataclasses.field(default=ANY_TEXTS, metadata=FIXED)


@as_pytree
@dataclasses.dataclass(frozen=True)
class Seen:
    """What a layer, or several, did on the way, as far as it was asked for."""

    routing: RoutingSums | None = None  # of layers with experts
    state: Float[Array, "*layers B S D"] | None = None  # what a layer left
    attention: Float32[Array, "*layers B H S S"] | None = None


def layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm in float32, with the two-pass variance that PyTorch computes."""
    return nnx.LayerNorm(
        config.width,
        epsilon=config.layer_norm_epsilon,
        use_bias=config.norm_bias,
        use_fast_variance=False,
        dtype=jnp.float32,
        rngs=rngs,
    )


class Block(nnx.Module):
    """One layer."""

    def __init__(
        self,
        config: ModelConfig,
        place: LayerPlace,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Draw fresh weights of a layer of the kind that a place holds."""
        mlp = MixtureOfExperts if place.sparse else Mlp
        self.attention = Attention(config, local=place.local, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(config, rngs) if place.attention_norm else None
        self.mlp = mlp(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(config, rngs)
        self.dropout = config.expert_dropout if place.sparse else config.dropout
        self.local, self.pre_norm = place.local, config.pre_norm

    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        number: int | Int[Array, ""],
        *,
        state: bool = False,
        attention: bool = False,
    ) -> tuple[Float[Array, "B S D"], Seen]:
        """Apply the layer.

        Args:
            x: the residual stream.
            context: of its tokens.
            number: of the layer, which sets its dropout apart.
            state: see what the layer leaves.
            attention: see how much tokens look at one another.
        """
        keys = context.dropout_keys
        for_attention, for_mlp = split(None if keys is None else fold(keys, number), 2)
        turns = context.local_turns if self.local else context.turns
        mixed, looks = self.attention(
            self._before(x, self.attention_norm),
            context.segment_ids,
            turns,
            setting=context.setting,
            weights=attention,
        )
        x = self._after(x, mixed, self.attention_norm, for_attention)
        mixed, routing = self._mlp(self._before(x, self.mlp_norm), context.counted)
        x = self._after(x, mixed, self.mlp_norm, for_mlp)
        return x, Seen(routing, x if state else None, looks)

    def _mlp(self, x, counted):
        if isinstance(self.mlp, MixtureOfExperts):
            return self.mlp(x, counted)
        return self.mlp(x), None

    def _before(self, x, norm):
        """Norm what a branch starts from, in a pre-norm layer that has the norm."""
        return norm(x).astype(x.dtype) if self.pre_norm and norm is not None else x

    def _after(self, x, mixed, norm, keys):
        """Add what a branch made; norm the sum in a post-norm layer."""
        x = x + drop(mixed, self.dropout, keys)
        return x if self.pre_norm else norm(x).astype(x.dtype)


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


def split(
    keys: Key[Array, "B S"] | None, count: int
) -> tuple[Key[Array, "B S"] | None, ...]:
    """Make `count` sets of the tokens' keys from one, or as many Nones."""
    if keys is None:
        return (None,) * count
    return tuple(fold(keys, number) for number in range(count))


def fold(keys: Key[Array, "B S"], number: int | Int[Array, ""]) -> Key[Array, "B S"]:
    """Fold a number into the key of each token."""
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys)
