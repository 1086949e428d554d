"""The loss of any head over a batch of examples, however its rows are split.

Sums and counts of microbatches and devices are added before anything is divided, so the
mean is that over the whole batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key

from nomic_jax.batch import MaskedTokens, TaskBatch, Tokens
from nomic_jax.config import Head, ModelConfig
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.sharding import over_data
from nomic_jax.training.dropout_keys import row_numbers, token_keys
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

Keys = Key[Array, "B S"] | None


def task_objective(config: ModelConfig, placement: Placement = ONE_DEVICE) -> Objective:
    """Return the loss of the head that a config names; see `head_losses`.

    Dropout is keyed by a text's number in the whole batch and the place in it.

    Args:
        config: the model's.
        placement: the mesh, and the examples of a microbatch.
    """

    def objective(model: EncoderWithHead, batch: TaskBatch, key: Key[Array, ""]):
        examples = len(batch.weights)

        def by_example(array):  # (B rows) ... -> B rows ...
            return jnp.reshape(array, (examples, -1, *array.shape[1:]))

        def sums(model, batch, numbers, key):
            def one(rows):
                # B rows ... -> (B rows) ...
                tokens, numbers = jax.tree.map(
                    lambda array: array.reshape(-1, *array.shape[2:]),
                    (rows[0].tokens, rows[1]),
                )
                batch = dataclasses.replace(rows[0], tokens=tokens)
                keys = token_keys(key, numbers, jnp.asarray(tokens.segment_ids))
                return batch_sums(
                    model, batch, config, keys, block=placement.masked_at_once
                )

            return in_microbatches(one, (batch, numbers), most=placement.most_rows)

        everywhere = over_data(
            sums,
            placement.mesh,
            names=parameter_names(model),
            splits=(True, True, False),
        )
        rows = dataclasses.replace(
            jax.tree.map(jnp.asarray, batch),
            tokens=jax.tree.map(by_example, batch.tokens),
        )
        numbers = by_example(row_numbers(len(batch.tokens.ids)))
        return everywhere(model, rows, numbers, key).loss, {}

    return objective


def batch_sums(
    model: EncoderWithHead,
    batch: TaskBatch,
    config: ModelConfig,
    keys: Keys,
    *,
    block: int,
) -> LossSums:
    """Return the sums of the head's loss over some examples.

    Args:
        model: with the head that the config names.
        batch: examples, each with all its rows.
        config: the model's.
        keys: of dropout; None leaves it off.
        block: masked tokens whose logits are held at once.
    """
    assert config.head is not None
    if batch.masked is not None:
        return _masked_sums(model, batch, batch.masked, keys, block)
    scores = model.scores(batch.tokens, dropout_keys=keys)
    return _LOSSES[config.head](scores, batch, config)


def masked_scores(
    model: Any, hidden: Float[Array, "B S D"], masked: MaskedTokens
) -> Float32[Array, "B N V"]:
    """Score the masked places alone; few of a row's tokens go through the MLM head."""
    places = jnp.asarray(masked.positions)[..., None]
    return model.logits(jnp.take_along_axis(hidden, places, axis=1))


def choice_scores(
    scores: Float32[Array, "rows"], tokens: Tokens, examples: int
) -> Float32[Array, "B choices"]:
    """Put a question's scores side by side; a choice that is not there cannot win."""
    there = jnp.asarray(tokens.mask).any(axis=1)
    lowest = jnp.finfo(scores.dtype).min
    return jnp.where(there, scores, lowest).reshape(examples, -1)


def _masked_sums(model, batch, masked, keys, block):
    hidden = model.encoder(batch.tokens, dropout_keys=keys)
    table = model.encoder.word_embedding.embedding[...]
    total, count = masked_cross_entropy(
        *(model.head, table, hidden, masked), block=block
    )
    mlm = LossSums(total[None], count[None])
    if model.encoder.config.head != "pretraining":
        return mlm
    following = cross_entropy(model.row_scores(hidden), batch.labels, batch.weights)
    return pretraining_loss(mlm, following)


def _of_texts(scores, batch, config):
    return SEQUENCE_LOSSES[config.problem](scores, batch.labels, batch.weights)


def _of_tokens(scores, batch, config):
    counted = batch.weights[:, None] & (batch.labels >= 0)
    return cross_entropy(scores, batch.labels, counted)


def _of_answers(scores, batch, config):
    starts, ends = batch.labels[:, 0], batch.labels[:, 1]
    return answer_cross_entropy(
        scores, starts, ends, batch.weights, columns=batch.tokens.mask
    )


def _of_choices(scores, batch, config):
    side_by_side = choice_scores(scores, batch.tokens, len(batch.weights))
    return cross_entropy(side_by_side, batch.labels, batch.weights)


def _of_pairs(scores, batch, config):
    return cross_entropy(scores, batch.labels, batch.weights)


_LOSSES: Mapping[Head, Callable[..., LossSums]] = {
    "next_sentence": _of_pairs,
    "sequence_classification": _of_texts,
    "token_classification": _of_tokens,
    "question_answering": _of_answers,
    "multiple_choice": _of_choices,
}
