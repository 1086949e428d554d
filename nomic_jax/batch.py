"""The arrays that flow from text to loss, and the legend of their axes.

Axis letters, in every signature of the project:

    B  rows of a batch          S  columns of a row, in tokens
    D  width of the model       E  dimension of an embedding
    H  attention heads          K  width of a head
    Q  queries of a batch       M  documents of a batch
    T  texts a row has room for N  masked positions of a row
    P  parts of a batch's rows  C  texts a part has room for
    V  vocabulary               L  layers
"""

import dataclasses
from collections.abc import Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

PADDING = 0  # the segment id of columns that hold no token
ABSENT = -1  # the place of a token that there is not

FIXED = {"fixed": True}  # marks a field of a pytree that is not an array

Record = TypeVar("Record")


def as_pytree(cls: type[Record]) -> type[Record]:
    """Let JAX map over the fields of a dataclass, but for those marked as `FIXED`.

    A program is compiled for what fixed fields hold, as it is for shapes. Unlike
    `jax.tree_util.register_dataclass`, this rebuilds instances without calling
    `__init__`: the shapes that fields declare hold for what a caller makes, while a
    transformation may put shardings, axes or stacked arrays in their place.
    """
    assert dataclasses.is_dataclass(cls)
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields if field.metadata != FIXED)
    fixed = tuple(field.name for field in fields if field.metadata == FIXED)

    def flatten(value: Record) -> tuple[list, tuple]:
        kept = tuple(getattr(value, name) for name in fixed)
        return [getattr(value, name) for name in names], kept

    def flatten_with_keys(value: Record) -> tuple[list, tuple]:
        keys = map(jax.tree_util.GetAttrKey, names)
        children, kept = flatten(value)
        return list(zip(keys, children, strict=True)), kept

    def unflatten(kept: tuple, children: Iterable) -> Record:
        value = object.__new__(cls)
        for name, child in zip((*names, *fixed), (*children, *kept), strict=True):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


@as_pytree
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Rows of token ids, each row one text or several packed one after another.

    A text is a run of equal, positive segment ids; `PADDING` marks columns that hold
    nothing. Segment ids carry all the encoder needs next to the ids: who attends to
    whom, where a position count starts, and how long each text is.
    """

    ids: Int[Array | np.ndarray, "B S"]
    segment_ids: Int[Array | np.ndarray, "B S"]
    type_ids: Int[Array | np.ndarray, "B S"] | None = None  # None: all of type 0
    # The most texts that a row holds; None: any number. Some kernels must know.
    texts: int | None = dataclasses.field(default=None, metadata=FIXED)

    @property
    def mask(self) -> Bool[Array | np.ndarray, "B S"]:
        """True where there is a token."""
        return self.segment_ids != PADDING


@as_pytree
@dataclasses.dataclass(frozen=True)
class MlmBatch:
    """Corrupted rows and what they said before, at the masked positions only.

    Rows hold different numbers of masked tokens, so `weights` is 0 where a slot of
    `positions` is unused.
    """

    tokens: Tokens
    positions: Int[Array | np.ndarray, "B N"]  # columns of the masked tokens
    targets: Int[Array | np.ndarray, "B N"]  # the ids that stood there
    weights: Bool[Array | np.ndarray, "B N"]


@as_pytree
@dataclasses.dataclass(frozen=True)
class PackedTexts:
    """Texts in rows that have room for T of them each.

    Slot `t` of row `r` is the segment of id `t + 1` there; it has number `r * T + t`.
    Texts in rows of their own are the case T = 1.
    """

    tokens: Tokens
    slot_lengths: Int[Array | np.ndarray, "B T"]  # tokens of each slot's text, or 0


@as_pytree
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Queries and their documents, all from one source, side by side in the same rows.

    Documents come in groups of `M / Q`, the positive first, its hard negatives after:
    document `i * M / Q` answers query `i`. The rows are in P equal parts, one for each
    device that takes rows; C slots of a part hold its texts, some of them nothing.
    """

    texts: PackedTexts
    slots: Int[Array | np.ndarray, "P C"]  # numbered within the part's rows
    query_places: Int[Array | np.ndarray, "Q"]  # of each query, in `slots` flattened
    document_places: Int[Array | np.ndarray, "M"]
    # Two halves of a 64-bit hash of the document in a slot: equal where its tokens are.
    document_ids: Int[Array | np.ndarray, "P C 2"]


@as_pytree
@dataclasses.dataclass(frozen=True)
class MaskedTokens:
    """What rows said where they are masked; see `MlmBatch`."""

    positions: Int[Array | np.ndarray, "B N"]
    targets: Int[Array | np.ndarray, "B N"]
    weights: Bool[Array | np.ndarray, "B N"]


@as_pytree
@dataclasses.dataclass(frozen=True)
class TaskBatch:
    """Texts, and what a head is to say of them.

    An example is a text, or as many texts side by side as any question of the data has
    choices; a choice that a question lacks is a text of no tokens. The texts are packed
    into rows, those of each device's examples into rows of its own; or each is a row.
    """

    tokens: Tokens
    # The right class, the targets, or where an answer starts and ends; of each token,
    # -1 where none is asked for.
    labels: Int[Array | np.ndarray, "B *each"] | Float[Array | np.ndarray, "B *each"]
    weights: Bool[Array | np.ndarray, "B"]  # which examples count
    masked: MaskedTokens | None = None  # None: nothing is masked
    # Of each text's tokens, in the rows of its device one after another; `ABSENT` where
    # the text has ended. None: text `i` is row `i`.
    places: Int[Array | np.ndarray, "texts columns"] | None = None


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """A step's arrays, on the host, with what is said about them."""

    source: str
    arrays: "MlmBatch | PairBatch | TaskBatch"
    num_tokens: int  # real ones
    num_columns: int  # of all rows, padding counted


def positions_and_lengths(
    segment_ids: Int[Array, "B S"],
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Count, for every column, its place in its own text and that text's tokens.

    Both are functions of the segment ids alone, so padding and neighbours in a packed
    row change neither.

    Returns:
        Positions from 0 in each segment, and the length of the segment a column is in.
    """
    columns = jnp.arange(segment_ids.shape[1])[None]
    begins = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
    ends = jnp.diff(segment_ids, axis=1, append=-1) != 0
    first = jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, columns, columns.size), axis=1, reverse=True)
    return columns - first, last - first + 1
