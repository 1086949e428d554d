"""What heads are trained on, as sums and counts that add up over parts of a batch.

    regression     mean of (score - target)^2
    one label      mean of log sum_l exp(score_l) - score_label
    many labels    mean of softplus(score) - score * target, over texts and labels
    answers        half the mean cross-entropy of the starts, half that of the ends
    pretraining    the MLM mean plus the next-sentence mean

The losses of BERT's tasks: Devlin et al. 2018 (arXiv:1810.04805), appendix A.2 and
section 4.2. Each is the mean, or the sum of means, that PyTorch's own losses give.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from nomic_jax.batch import as_pytree
from nomic_jax.config import Problem


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
    is no label, such as padding, special tokens and the rest of a word. Data that marks
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

    A start or an end that stands in no column an answer may have is not counted, as in
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
