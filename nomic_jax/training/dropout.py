"""Keys of dropout: one a token, by its text's number in the batch and its place in it.

Neither packing nor microbatches nor the number of devices changes what is dropped.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, Key

from nomic_jax.batch import ABSENT, PairBatch, Tokens, positions_and_lengths


def row_numbers(rows: int) -> Int32[Array, "B 1"]:
    """Number the rows of the global batch, each of which is one text."""
    return jnp.arange(rows, dtype=jnp.int32)[:, None]


def slot_numbers(
    numbers: Int32[Array, "texts 1"], begins: Int[Array, "texts"], tokens: Tokens
) -> Int32[Array, "B T"]:
    """Write the numbers of texts into the slots that hold them; others get 0.

    Args:
        numbers: of the texts in the global batch.
        begins: the place of each one's first token, in all rows one after another;
            `ABSENT` where it has none.
        tokens: the rows; slot `t` of one is segment `t + 1`.
    """
    segments = jnp.asarray(tokens.segment_ids)
    rows, columns = segments.shape
    assert tokens.texts is not None
    slot = segments.reshape(-1)[begins] - 1
    row = jnp.where(begins == ABSENT, rows, begins // columns)  # out of bounds: dropped
    found = jnp.zeros((rows, tokens.texts), jnp.int32)
    return found.at[row, slot].set(numbers[:, 0], mode="drop")


def text_numbers(batch: PairBatch) -> Int32[Array, "B T"]:
    """Number the texts of the global batch by the slots that hold them.

    Queries come first, then the documents in their groups. An empty slot has -1.
    """
    parts, slots = batch.slots.shape
    queries, documents = len(batch.query_places), len(batch.document_places)
    places = jnp.concatenate([batch.query_places, batch.document_places])
    numbers = jnp.full(parts * slots, -1, jnp.int32)
    numbers = numbers.at[places].set(jnp.arange(queries + documents, dtype=jnp.int32))
    shape = batch.texts.slot_lengths.shape
    within = jnp.full((parts, shape[0] * shape[1] // parts), -1, jnp.int32)
    part = jnp.arange(parts)[:, None]
    within = within.at[part, batch.slots].max(numbers.reshape(parts, slots))
    return within.reshape(shape)


def token_keys(
    key: Key[Array, ""],
    numbers: Int32[Array, "B T"],
    segment_ids: Int[Array, "B S"],
) -> Key[Array, "B S"]:
    """Give each token a key of its own.

    Args:
        key: of the step.
        numbers: of the texts in each row's slots, or of the row where that is one text.
        segment_ids: of the rows; slot `t` is segment `t + 1`.
    """
    if numbers.shape[1] == 1:  # the row is the text, whatever is joined in it
        text = jnp.broadcast_to(numbers, segment_ids.shape)
        place = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    else:
        slot = jnp.maximum(segment_ids - 1, 0)  # at padding any will do
        text = jnp.take_along_axis(numbers, slot, axis=1)
        place = positions_and_lengths(segment_ids)[0]

    def one(text, place):
        return jax.random.fold_in(jax.random.fold_in(key, text), place)

    return jax.vmap(jax.vmap(one))(text, place)
