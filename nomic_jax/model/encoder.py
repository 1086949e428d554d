"""The encoder of the whole family: NomicBERT, BERT and XLM-R, ModernBERT.

    h = LN(word[ids] + type[type_ids]  (+ position[place in the text]))
    post-norm, each layer:   h = LN(h + attention(h));  h = LN(h + mlp(h))
    pre-norm, each layer:    h = h + attention(LN(h));  h = h + mlp(LN(h));  h = LN(h)

NomicBERT has rotary embeddings and SwiGLU (Nussbaum et al. 2024, arXiv:2402.01613,
section 3), or GELU and a mixture of experts in every second layer (arXiv:2502.07972).
BERT and XLM-R have absolute positions and GELU (Devlin et al. 2018, arXiv:1810.04805).
ModernBERT is pre-norm (Xiong et al. 2020, arXiv:2002.04745), with GeGLU and local
layers (Warner et al. 2024, arXiv:2412.13663).

Layers of one kind are stacked and scanned, one array per kind of parameter. Where kinds
alternate, a group of them is scanned: a layer with one MLP and a layer with experts;
or, in ModernBERT (arXiv:2412.13663, section 2.1), local layers and a global one, after
a first layer that has no norm before its attention.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from nomic_jax.batch import FIXED, Tokens, as_pytree, positions_and_lengths
from nomic_jax.config import ModelConfig
from nomic_jax.model.attention.backends import (
    AttentionBackend,
    AttentionSpec,
    Platform,
    Setting,
    check_backend,
    describe_backend,
)
from nomic_jax.model.attention.layer import ANY_TEXTS, Attention
from nomic_jax.model.layers import PRODUCT, Mlp
from nomic_jax.model.moe import MixtureOfExperts, RoutingSums
from nomic_jax.model.rope import RotaryTable, check_length, rotary_table

DENSE, SPARSE = "dense", "sparse"  # layers with one MLP, and with experts


@dataclasses.dataclass(frozen=True)
class LayerPlace:
    """Layers whose parameters are kept under one path of the encoder."""

    path: str
    layers: tuple[int, ...]  # which they are, in order
    stacked: bool = True  # on a leading axis; else it is one layer
    sparse: bool = False  # experts instead of one MLP
    local: bool = False  # attention within a window
    attention_norm: bool = True


def layer_places(config: ModelConfig) -> tuple[LayerPlace, ...]:
    """Return the places of all layers, those of one group side by side."""
    total, every = config.num_layers, config.global_every
    if config.num_experts:
        return (
            LayerPlace(f"blocks.{DENSE}", tuple(range(0, total, 2))),
            LayerPlace(f"blocks.{SPARSE}", tuple(range(1, total, 2)), sparse=True),
        )
    if not config.pre_norm and every == 1:
        return (LayerPlace("blocks", tuple(range(total))),)
    groups = (total - 1) // every
    end = 1 + groups * every

    def place(path: str, *layers: int, stacked: bool) -> LayerPlace:
        local = bool(layers[0] % every)
        return LayerPlace(path, layers, stacked=stacked, local=local)

    return (
        LayerPlace("first", (0,), stacked=False, attention_norm=not config.pre_norm),
        *(
            place(f"blocks.{i}", *range(1 + i, end, every), stacked=True)
            for i in range(every if groups else 0)
        ),
        *(
            place(f"rest.{i}", layer, stacked=False)
            for i, layer in enumerate(range(end, total))
        ),
    )


@as_pytree
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer is told of its tokens."""

    segment_ids: Int[Array, "B S"]
    counted: Bool[Array, "B S"] | None  # tokens that routing sums count; None: all
    rotary: RotaryTable | None  # of global layers; None: positions are absolute
    local_rotary: RotaryTable | None  # of local layers, where there are any
    dropout_keys: Key[Array, "B S"] | None  # None: dropout is off
    setting: Setting = dataclasses.field(default=ANY_TEXTS, metadata=FIXED)


@as_pytree
@dataclasses.dataclass(frozen=True)
class LayerIntermediates:
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
    ) -> tuple[Float[Array, "B S D"], LayerIntermediates]:
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
        rotary = context.local_rotary if self.local else context.rotary
        mixed, looks = self.attention(
            self._before(x, self.attention_norm),
            context.segment_ids,
            rotary,
            setting=context.setting,
            weights=attention,
        )
        x = self._after(x, mixed, self.attention_norm, for_attention)
        mixed, routing = self._mlp(self._before(x, self.mlp_norm), context.counted)
        x = self._after(x, mixed, self.mlp_norm, for_mlp)
        return x, LayerIntermediates(routing, x if state else None, looks)

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


FLOAT32 = jnp.dtype("float32")
# What a layer keeps for its backward pass: all it computed, the results of its products
# with weights, or its input alone.
Remat = Literal["none", "dots", "full"]
_KEPT = {"dots": jax.checkpoint_policies.save_only_these_names(PRODUCT), "full": None}


@as_pytree
@dataclasses.dataclass(frozen=True)
class Encoding:
    """The last hidden states, and what else was seen on the way to them."""

    hidden: Float[Array, "B S D"]
    routing: RoutingSums | None  # of each layer with experts, in order; None: none has
    # Of the embeddings and of each layer in order; the last are `hidden`.
    states: Float[Array, "states B S D"] | None
    attention: Float32[Array, "L B H S S"] | None  # how much each token looks at each


class NomicBert(nnx.Module):
    """The encoder, usable as a pytree under `jax.jit`, `jax.grad` and friends.

    Weights are float32. `dtype` is what matmuls run in: float32 by default, bfloat16
    for accelerators; norms, softmax, routing and rotations are float32 either way.
    `backend` is what computes attention; see `model.attention.backends`.
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
        self.backend: AttentionBackend = "auto"  # `set_attention` names another
        self.platform: Platform | None = None  # it is compiled for; None: that here
        init = nnx.initializers.normal(config.initializer_range)
        table = functools.partial(nnx.Embed, features=config.width, rngs=rngs)

        def word_init(key, shape, dtype):
            return init(key, shape, dtype).at[config.pad_token_id].set(0)

        self.word_embedding = table(config.vocab_size, embedding_init=word_init)
        self.type_embedding = (
            table(config.type_vocab_size, embedding_init=init)
            if config.type_vocab_size
            else None
        )
        rows = config.first_position + config.trained_positions
        self.position_embedding = (
            table(rows, embedding_init=init) if config.rope_base is None else None
        )
        self.embedding_norm = layer_norm(config, rngs)
        self._draw_layers(rngs)
        self.final_norm = layer_norm(config, rngs) if config.pre_norm else None

    def _draw_layers(self, rngs: nnx.Rngs) -> None:
        config = self.config
        places = layer_places(config)
        block = functools.partial(Block, config, dtype=self.dtype)
        scanned = [place for place in places if place.stacked]

        def group(rngs):
            members = [block(place, rngs=rngs) for place in scanned]
            if config.num_experts:
                return nnx.Dict(dict(zip((DENSE, SPARSE), members, strict=True)))
            return members[0] if scanned[0].path == "blocks" else nnx.List(members)

        first = [place for place in places if place.path == "first"]
        rest = [place for place in places if place.path.startswith("rest")]
        self.first = block(first[0], rngs=rngs) if first else None
        self.blocks = (
            jax.vmap(group)(rngs.split(len(scanned[0].layers))) if scanned else None
        )
        self.rest = nnx.List([block(place, rngs=rngs) for place in rest])

    def __call__(
        self, tokens: Tokens, *, dropout_keys: Key[Array, "B S"] | None = None
    ) -> Float[Array, "B S D"]:
        """Encode every token in the light of its own text; see `encode`.

        Returns:
            The last hidden states in `dtype`; at padding they are finite and mean
            nothing.
        """
        return self.encode(tokens, dropout_keys=dropout_keys).hidden

    def encode(
        self,
        tokens: Tokens,
        *,
        dropout_keys: Key[Array, "B S"] | None = None,
        counted: Bool[Array, "B S"] | None = None,
        states: bool = False,
        attention: bool = False,
        unroll: bool = False,
    ) -> Encoding:
        """Encode every token, and return what a caller wants to see of it.

        Args:
            tokens: rows of one or several texts each.
            dropout_keys: a key for each token, consumed; None leaves dropout off.
            counted: columns that routing sums are of; None: those that hold a token.
            states: return the hidden states of every layer.
            attention: return how much every token looks at every other; takes memory
                with the square of the row's length.
            unroll: compile layers one after another, not one as a loop's body.

        Raises:
            ValueError: a row is longer than the trained positions and the config has no
                `rope_scaling_factor`, or the attention backend cannot do it.
        """
        config = self.config
        check_length(config, tokens.ids.shape[1])
        segment_ids = jnp.asarray(tokens.segment_ids)
        before, within = split(dropout_keys, 2)
        x = self.embedding_norm(self._embedded(tokens)).astype(self.dtype)
        x = drop(x, config.dropout, before)
        rotary, local = config.rope_base is not None, config.local_window is not None
        context = Context(
            segment_ids,
            jnp.asarray(tokens.mask) if counted is None else counted,
            rotary_table(config, segment_ids) if rotary else None,
            rotary_table(config, segment_ids, local=True) if local else None,
            within,
            Setting(backend=self.backend, platform=self.platform, texts=tokens.texts),
        )
        embedded = x
        x, seen = self._through_layers(
            x, context, unroll, state=states, attention=attention
        )
        if self.final_norm is not None:
            x = self.final_norm(x).astype(self.dtype)
        each_state = None
        if seen.state is not None:  # the last is normed, where models norm it
            each_state = jnp.concatenate([embedded[None], seen.state[:-1], x[None]])
        return Encoding(x, seen.routing, each_state, seen.attention)

    def _embedded(self, tokens: Tokens) -> Float[Array, "B S D"]:
        """Add up what the tables have for each token."""
        x = self.word_embedding.embedding[...][tokens.ids]
        if self.type_embedding is not None:
            types = self.type_embedding.embedding[...]
            x += types[None, :1] if tokens.type_ids is None else types[tokens.type_ids]
        if self.position_embedding is not None:
            x += self.position_embedding.embedding[...][self._position_rows(tokens)]
        return x

    def _position_rows(self, tokens: Tokens) -> Int[Array, "B S"]:
        """Return the row of the absolute table that each token has.

        XLM-R gives a padding token within a text, as `<pad>` spelt out makes one, the
        row before the first and does not count it.
        """
        place = positions_and_lengths(jnp.asarray(tokens.segment_ids))[0]
        first = self.config.first_position
        if not first:
            return place
        padding = jnp.asarray(tokens.ids) == self.config.pad_token_id
        so_far = jnp.cumsum(padding, axis=1)
        begin = jnp.arange(place.shape[1])[None] - place  # each token's text
        before = jnp.take_along_axis(so_far - padding, begin, axis=1)
        return first + jnp.where(padding, -1, place - (so_far - before))

    def _through_layers(self, x, context, unroll, **asked):
        """Apply all layers; what was seen has a leading axis of layers."""

        def layer(block, x, context, number):
            return block(x, context, number, **asked)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=_KEPT[self.remat])

        def group(x, group_and_number):
            members, number = group_and_number
            seen = []
            for offset, block in enumerate(_members(members)):
                x, one = layer(block, x, context, number + offset)
                seen.append(one)
            return x, _stacked(seen)

        alone, every = self.first is not None, len(_members(self.blocks))
        seen, done = [], int(alone)
        if self.first is not None:
            x, one = group(x, (self.first, 0))
            seen.append(one)
        if every:
            groups = (self.config.num_layers - done) // every
            numbers = done + every * jnp.arange(groups)
            x, grouped = jax.lax.scan(group, x, (self.blocks, numbers), unroll=unroll)
            seen.append(jax.tree.map(_without_groups, grouped))
            done += groups * every
        for offset, block in enumerate(self.rest):
            x, one = group(x, (block, done + offset))
            seen.append(one)
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)


def _members(group) -> list[Block]:
    """List the layers of a group, or of a stack of groups, in order."""
    if group is None:
        return []
    if isinstance(group, Block):
        return [group]
    return [group[DENSE], group[SPARSE]] if isinstance(group, nnx.Dict) else [*group]


def _stacked(seen: list[LayerIntermediates]) -> LayerIntermediates:
    """Put what a group's layers did on a leading axis; routing is of some of them."""

    def stacked(kind):
        values = [getattr(one, kind) for one in seen if getattr(one, kind) is not None]
        return jax.tree.map(lambda *each: jnp.stack(each), *values) if values else None

    return LayerIntermediates(
        stacked("routing"), stacked("state"), stacked("attention")
    )


def _without_groups(array):
    """Join the axis of groups and that of a group's layers."""
    return array.reshape(-1, *array.shape[2:])


def set_attention(
    encoder: NomicBert,
    backend: AttentionBackend,
    *,
    rows: Sequence[tuple[int, int | None]],
    devices: int,
) -> str:
    """Set what computes an encoder's attention, and return what that comes to.

    Args:
        encoder: whose attention it is.
        backend: a name, or `auto`.
        rows: columns of those that will come up, ascending, and the most texts that
            each holds; None: any number.
        devices: that compute a batch together.

    Raises:
        ValueError: there is no such backend, or it cannot compute such rows.
    """
    check_backend(backend)
    config, local = encoder.config, encoder.config.local_window
    cases = [
        AttentionSpec.of(
            Setting(backend=backend, platform=encoder.platform, texts=texts),
            str(encoder.dtype),
            head_width=config.head_width,
            length=length,
            window=window,
            devices=devices,
        )
        for window in ((None,) if local is None else (None, local))
        for length, texts in rows
    ]
    said = describe_backend(backend, cases)
    encoder.backend = backend
    return said
