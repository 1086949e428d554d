"""The loss of any head over a batch of examples, however its rows are packed and split.

Rows go through the encoder, in microbatches where asked for; what it gave of each text
then stands in a row of its own, which is all that heads know. Sums and counts of
devices are added before anything is divided: the mean is that over the whole batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

from nomic_jax.batch import ABSENT, MaskedTokens, TaskBatch
from nomic_jax.config import Head, ModelConfig
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.sharding import over_data
from nomic_jax.training.dropout_keys import row_numbers, slot_numbers, token_keys
from nomic_jax.training.head_losses import (
    SEQUENCE_LOSSES,
    LossSums,
    answer_cross_entropy,
    cross_entropy,
    pretraining_loss,
)
from nomic_jax.training.microbatches import in_microbatches
from nomic_jax.training.mlm_loss import masked_cross_entropy
from nomic_jax.training.placement import Placement, parameter_names
from nomic_jax.training.steps import ONE_DEVICE, Objective


def task_objective(config: ModelConfig, placement: Placement = ONE_DEVICE) -> Objective:
    """Return the loss of the head that a config names; see `head_losses`.

    Dropout is keyed by a text's number in the whole batch and the place in it.

    Args:
        config: the model's.
        placement: the mesh, and the rows of a microbatch.
    """

    def objective(model: EncoderWithHead, batch: TaskBatch, key: Key[Array, ""]):
        def sums(model, batch, numbers, key):
            hidden = _hidden(model, batch, numbers, key, placement)
            hidden, mask = by_text(hidden, batch)
            keys = token_keys(key, numbers, mask.astype(jnp.int32))
            found = head_sums(
                *(model, hidden, mask, batch, config, keys),
                block=placement.masked_at_once,
            )
            return jax.tree.map(lambda each: each[None], found)

        everywhere = over_data(
            sums,
            placement.mesh,
            names=parameter_names(model),
            splits=(True, True, False),
        )
        batch = jax.tree.map(jnp.asarray, batch)
        texts = batch.tokens.ids if batch.places is None else batch.places
        return everywhere(model, batch, row_numbers(len(texts)), key).loss, {}

    return objective


def _hidden(
    model: EncoderWithHead,
    batch: TaskBatch,
    numbers: Int32[Array, "texts 1"],
    key: Key[Array, ""],
    placement: Placement,
) -> Float[Array, "B S D"]:
    """Encode the rows of a device."""

    def one(rows):
        tokens, numbers = rows
        keys = token_keys(key, numbers, jnp.asarray(tokens.segment_ids))
        encoded = model.encoder.encode(
            tokens, dropout_keys=keys, unroll=placement.unroll
        )
        return encoded.hidden

    if batch.places is not None:
        begins = jnp.asarray(batch.places)[:, 0]
        numbers = slot_numbers(numbers, begins, batch.tokens)
    rows = batch.tokens, numbers
    hidden = in_microbatches(one, rows, most=placement.most_rows)
    # Rows that microbatches added stand at the end.
    return hidden.reshape(-1, *hidden.shape[2:])[: len(batch.tokens.ids)]


def by_text(
    hidden: Float[Array, "B S D"], batch: TaskBatch
) -> tuple[Float[Array, "texts columns D"], Bool[Array, "texts columns"]]:
    """Give each text a row of its own, and say where in it there is a token."""
    if batch.places is None:
        return hidden, jnp.asarray(batch.tokens.mask)
    places, flat = jnp.asarray(batch.places), hidden.reshape(-1, hidden.shape[-1])
    there = places != ABSENT
    # No token stands in two places: their gradients need not be added up.
    found = flat.at[jnp.where(there, places, len(flat))].get(
        mode="fill", fill_value=0, unique_indices=True
    )
    return found, there


def head_sums(
    model: EncoderWithHead,
    hidden: Float[Array, "texts columns D"],
    mask: Bool[Array, "texts columns"],
    batch: TaskBatch,
    config: ModelConfig,
    keys: Key[Array, "texts columns"] | None,
    *,
    block: int,
) -> LossSums:
    """Return the sums of a head's loss over some examples.

    Args:
        model: with the head that the config names.
        hidden: what the encoder gave of each text.
        mask: True where a text has a token.
        batch: the examples.
        config: the model's.
        keys: of dropout; None leaves it off.
        block: masked tokens whose logits are held at once.
    """
    assert config.head is not None
    if batch.masked is not None:
        return _masked_sums(model, hidden, batch, batch.masked, block)
    scores = model.head_scores(hidden, mask, dropout_keys=keys)
    return _LOSSES[config.head](scores, mask, batch, config)


def masked_scores(
    model: Any, hidden: Float[Array, "B S D"], masked: MaskedTokens
) -> Float32[Array, "B N V"]:
    """Score the masked places alone; few of a row's tokens go through the MLM head."""
    places = jnp.asarray(masked.positions)[..., None]
    return model.logits(jnp.take_along_axis(hidden, places, axis=1))


def choice_scores(
    scores: Float32[Array, "texts"], mask: Bool[Array, "texts columns"], examples: int
) -> Float32[Array, "B choices"]:
    """Put a question's scores side by side; a choice that is not there cannot win."""
    there = mask.any(axis=1)
    lowest = jnp.finfo(scores.dtype).min
    return jnp.where(there, scores, lowest).reshape(examples, -1)


def _masked_sums(model, hidden, batch, masked, block):
    table = model.encoder.word_embedding.embedding[...]
    total, count = masked_cross_entropy(
        *(model.head, table, hidden, masked), block=block
    )
    mlm = LossSums(total[None], count[None])
    if model.encoder.config.head != "pretraining":
        return mlm
    following = cross_entropy(model.row_scores(hidden), batch.labels, batch.weights)
    return pretraining_loss(mlm, following)


def _of_texts(scores, mask, batch, config):
    return SEQUENCE_LOSSES[config.problem](scores, batch.labels, batch.weights)


def _of_tokens(scores, mask, batch, config):
    counted = batch.weights[:, None] & (batch.labels >= 0)
    return cross_entropy(scores, batch.labels, counted)


def _of_answers(scores, mask, batch, config):
    starts, ends = batch.labels[:, 0], batch.labels[:, 1]
    return answer_cross_entropy(scores, starts, ends, batch.weights, columns=mask)


def _of_choices(scores, mask, batch, config):
    side_by_side = choice_scores(scores, mask, len(batch.weights))
    return cross_entropy(side_by_side, batch.labels, batch.weights)


def _of_pairs(scores, mask, batch, config):
    return cross_entropy(scores, batch.labels, batch.weights)


_LOSSES: Mapping[Head, Callable[..., LossSums]] = {
    "next_sentence": _of_pairs,
    "sequence_classification": _of_texts,
    "token_classification": _of_tokens,
    "question_answering": _of_answers,
    "multiple_choice": _of_choices,
}
