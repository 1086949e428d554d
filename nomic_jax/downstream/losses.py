"""The loss of every head over a batch, however its rows are packed and split.

    regression     mean of (score - target)^2
    one label      mean of log sum_l exp(score_l) - score_label
    many labels    mean of softplus(score) - score * target, over texts and labels
    answers        half the mean cross-entropy of the starts, half that of the ends
    pretraining    the MLM mean plus the next-sentence mean

The losses of BERT's tasks: Devlin et al. 2018 (arXiv:1810.04805), appendix A.2 and
section 4.2. Each is the mean, or the sum of means, that PyTorch's own losses give.

Rows go through the encoder, in microbatches where asked for; each text's hidden states
are then put into a row of their own, which is all that heads know. Sums and counts of
all devices are added before anything is divided: the mean is over the whole batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from nomic_jax.batch import ABSENT, MaskedTokens, TaskBatch, as_pytree
from nomic_jax.config import Head, ModelConfig, Problem
from nomic_jax.distributed.mesh import over_data
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.training.dropout import row_numbers, slot_numbers, token_keys
from nomic_jax.training.losses.mlm import masked_cross_entropy
from nomic_jax.training.microbatches import in_microbatches
from nomic_jax.training.placement import Placement, parameter_names
from nomic_jax.training.steps import ONE_DEVICE, Objective


@as_pytree
@dataclasses.dataclass(frozen=True)
class LossSums:
    """A loss that is one mean, or several that are added, before any is divided.

    The sums of parts of a batch, microbatches or devices, stand side by side on leading
    axes, or are added field by field: `loss` is that of the whole either way.
    """

    totals: Float32[Array, "*parts means"]
    counts: Float32[Array, "*parts means"]

    @property
    def loss(self) -> Float32[Array, ""]:
        """Divide each total by its count, and add; a mean of nothing is 0."""
        means = self.totals.shape[-1]
        totals = self.totals.reshape(-1, means).sum(axis=0)
        counts = self.counts.reshape(-1, means).sum(axis=0)
        return jnp.sum(totals / jnp.maximum(counts, 1))


def cross_entropy(
    scores: Float[Array, "*rows labels"],
    labels: Int[Array, "*rows"],
    weights: Bool[Array, "*rows"],
) -> LossSums:
    """Sum the cross-entropy of the right label, over the rows that count.

    Of texts for one label, next sentences (label 0: it is next) and choices (their
    scores shaped `questions choices`); of tokens, with False in `weights` where there
    is none, such as padding, special tokens and the rest of a word. Data that marks
    those by a label of -100 or -1 has `weights = labels >= 0`.

    Args:
        scores: logits.
        labels: the right one's number; any where the weight is False.
        weights: which rows count.
    """
    right = jnp.where(weights, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        scores.astype(jnp.float32), right
    )
    return _one_mean(losses, weights)


def squared_error(
    scores: Float[Array, "B labels"],
    targets: Float[Array, "B labels"],
    weights: Bool[Array, "B"],
) -> LossSums:
    """Sum squared errors over the texts that count and all their targets."""
    errors = jnp.square(scores.astype(jnp.float32) - targets)
    return _one_mean(errors, _broadcast(weights, errors))


def binary_cross_entropy(
    scores: Float[Array, "B labels"],
    targets: Float[Array, "B labels"],
    weights: Bool[Array, "B"],
) -> LossSums:
    """Sum the cross-entropy of each label's being so, over the texts that count.

    Args:
        scores: logits.
        targets: 1 where a text has the label, else 0.
        weights: which texts count.
    """
    losses = optax.sigmoid_binary_cross_entropy(scores.astype(jnp.float32), targets)
    return _one_mean(losses, _broadcast(weights, losses))


# By what a sequence classifier's scores are; all take scores, labels and weights.
SEQUENCE_LOSSES: Mapping[Problem, Callable[..., LossSums]] = {
    "regression": squared_error,
    "one_label": cross_entropy,
    "many_labels": binary_cross_entropy,
}


def answer_cross_entropy(
    scores: Float[Array, "B S 2"],
    starts: Int[Array, "B"],
    ends: Int[Array, "B"],
    weights: Bool[Array, "B"],
    *,
    columns: Bool[Array, "B S"],
) -> LossSums:
    """Sum the cross-entropy of where answers start, and of where they end.

    A start or an end that is in no column an answer may have is not counted, as in
    a window that has lost it; the other one still is. The two means are halved.

    Args:
        scores: logits of each column's being the start, and the end, inclusive.
        starts: columns.
        ends: columns.
        weights: which rows count.
        columns: where answers may stand, such as the mask of tokens: what scores
            padding means nothing here. PyTorch code commonly lets it compete.
    """
    length = scores.shape[1]
    places = jnp.stack([starts, ends], axis=1)  # B 2
    inside = (places >= 0) & (places < length)
    places = jnp.where(inside, places, 0)
    counted = inside & jnp.take_along_axis(columns, places, axis=1)
    counted &= _broadcast(weights, counted)
    logits = jnp.swapaxes(scores.astype(jnp.float32), 1, 2)  # B 2 S
    logits = jnp.where(columns[:, None], logits, jnp.finfo(jnp.float32).min)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, places)
    losses = jnp.where(counted, losses, 0)
    return LossSums(losses.sum(axis=0) / 2, counted.sum(axis=0, dtype=jnp.float32))


def pretraining_loss(mlm: LossSums, next_sentence: LossSums) -> LossSums:
    """Add the means of BERT's two tasks, each with its own count."""
    return jax.tree.map(
        lambda *each: jnp.concatenate(each, axis=-1), mlm, next_sentence
    )


def _one_mean(losses: Array, weights: Array) -> LossSums:
    # A factor of 0 would let through what is not finite where nothing counts.
    total = jnp.sum(jnp.where(weights, losses, 0))
    return LossSums(total[None], jnp.sum(weights, dtype=jnp.float32)[None])


def _broadcast(weights: Array, like: Array) -> Array:
    return jnp.broadcast_to(weights[:, None], like.shape)


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
    # No token is in two places: their gradients need not be added up.
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
