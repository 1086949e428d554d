"""What contrastive training minimises: InfoNCE over cosines, and its variants.

van den Oord et al. 2018 (arXiv:1807.03748), equation 4.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from nomic_jax.model.pooling import matryoshka
from nomic_jax.training.blockwise import (
    Axis,
    Guide,
    Texts,
    guide_limit,
    share,
    sides_of_pairs,
    sum_negatives,
)
from nomic_jax.training.matryoshka import check_dims, weighted_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveLoss:
    """InfoNCE and its variants."""

    temperature: float = 0.02  # similarities are divided by it; the published value
    learned_scale: bool = False  # 1 / temperature is only where the scale starts
    max_scale: float = 100.0  # where steps set a learned scale back: arXiv:2103.00020
    both_directions: bool = False  # mean with choosing the query of each positive
    query_negatives: bool = False  # a query is told from the other queries too
    positive_negatives: bool = False  # and its positive from the other positives
    # A candidate whose guide cosine is above the positive's less this is no negative.
    false_negative_margin: float | None = None  # None: every candidate is
    relative_margin: bool = False  # the margin is a share of the positive's cosine
    matryoshka_dims: tuple[int, ...] = ()  # entries of the prefixes; empty: only full
    matryoshka_weights: tuple[float, ...] = ()  # of the dims' losses; empty: 1 each
    block_size: int | None = None  # candidates whose logits are held at once; None: all

    def __post_init__(self) -> None:
        """Refuse numbers without meaning.

        Raises:
            ValueError: with the field and what it may be.
        """
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        if not self.learned_scale and self.max_scale != ContrastiveLoss.max_scale:
            raise ValueError("max_scale bounds a learned scale; set learned_scale too")
        if self.learned_scale and self.max_scale < 1 / self.temperature:
            raise ValueError(
                f"max_scale={self.max_scale} is below the scale that training starts "
                f"with, 1 / temperature = {1 / self.temperature:g}"
            )
        margin = self.false_negative_margin
        if margin is not None and not -1 < margin < 1:
            raise ValueError(
                f"false_negative_margin={margin} must be above -1 and below 1; it is "
                "taken off a cosine"
            )
        if self.relative_margin and margin is None:
            raise ValueError("relative_margin needs false_negative_margin; set both")
        if self.matryoshka_weights or self.matryoshka_dims:
            widest = max(self.matryoshka_dims, default=1)
            check_dims(self.matryoshka_dims, self.weights, widest)
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1")

    @property
    def weights(self) -> tuple[float, ...]:
        """One a dimension."""
        return self.matryoshka_weights or (1.0,) * max(len(self.matryoshka_dims), 1)


def bounded_log_scale(
    log_scale: Float32[Array, ""], maximum: float
) -> Float32[Array, ""]:
    """Set the trained logarithm of a scale back to its bound, after an optimizer step.

    The parameter itself is bounded, not its use in the loss: there the gradient would
    vanish beyond the bound, and the scale never fall again (Radford et al. 2021,
    arXiv:2103.00020, section 2.5, where the maximum is 100).
    """
    return jnp.minimum(log_scale, math.log(maximum))


def info_nce(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    *,
    scale: float | Float32[Array, ""],
    document_ids: Int[Array, "M 2"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Cross-entropy of each query against every document of the batch.

    Documents come in groups of `M / Q`, positive first: row `i * M / Q` answers query
    `i`; all other rows, its own hard negatives included, are negatives.

    Args:
        query: not normalised.
        document: not normalised.
        scale: of the cosines, the inverse of the temperature.
        document_ids: equal for equal documents. The copies of a query's positive are
            then no negatives of that query; None: every document counts.

    Returns:
        The mean loss, and the share of queries whose positive scores highest.

    Raises:
        ValueError: the documents do not come in groups of equal size.
    """
    sides = sides_of_pairs(query, document, document_ids, None)
    losses, found = _by_dim(
        ContrastiveLoss(),
        sides,
        scale=scale,
        limit=None,
        dims=(query.shape[1],),
        axis=None,
    )
    return losses[0], found[0]


def contrastive_loss(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    config: ContrastiveLoss,
    *,
    document_ids: Int[Array, "M 2"] | None = None,
    guide: Guide | None = None,
    log_scale: Float32[Array, ""] | None = None,
    axis: Axis | None = None,
) -> tuple[Float32[Array, ""], Mapping[str, Float32[Array, ""]]]:
    """InfoNCE as a config says, of the layout that `info_nce` describes.

    For pair `i`, with `p` its positive's logit and `n` the logits of its negatives, the
    loss is `log(1 + sum(exp(n - p)))`. Negatives are documents; with `query_negatives`
    the other queries beside `i`'s too, and with `positive_negatives` the other
    positives beside its positive, as in GISTEmbed (arXiv:2402.16829, section 3). With
    `both_directions`, half of the loss is that of a second softmax, in which the
    positive chooses among all queries. What is masked as a copy or as a false negative
    is decided at full width, for pair `i` by its own positive's guide cosine, in every
    one of these.

    Args:
        query: not normalised, at full width.
        document: not normalised, at full width.
        config: which of all this.
        document_ids: see `info_nce`.
        guide: vectors of the same queries and documents, of any width, that decide what
            is a false negative; None: the model's own. No gradient reaches them.
        log_scale: the trained logarithm where the scale is learned.
        axis: inside a `shard_map`, in which every device has the whole batch, the mesh
            axes along which each computes a share of the pairs; the pairs must divide.
            None: all pairs are computed here.

    Returns:
        The loss, and `accuracy`: the share of queries whose positive scores above all
        documents that are its negatives, at the largest of the Matryoshka dims; then
        `loss_DIM`, without its weight, for each of them, and `scale` if learned.

    Raises:
        ValueError: the documents do not come in groups of equal size, a dim is beyond
            the width, or a guide or scale is given where the config has none.
    """
    if (log_scale is None) == config.learned_scale:
        raise ValueError(
            f"learned_scale={config.learned_scale}, so log_scale must "
            f"{'' if config.learned_scale else 'not '}be given"
        )
    if guide is not None and config.false_negative_margin is None:
        raise ValueError("a guide needs false_negative_margin; it is not set")
    dims = config.matryoshka_dims or (query.shape[1],)
    check_dims(dims, config.weights, query.shape[1])
    limit, margin = None, config.false_negative_margin
    if margin is not None:
        guide = (query, document) if guide is None else guide
    if axis is not None:
        # Each device's gradient is a part of the sum. Marked here, it is summed once,
        # and not in each block.
        query, document, guide = jax.lax.pcast(
            (query, document, guide), axis, to="varying"
        )
    sides = sides_of_pairs(query, document, document_ids, guide)
    queries, positives, _ = sides
    if margin is not None and queries.guide is not None and positives.guide is not None:
        limit = guide_limit(
            queries.guide,
            positives.guide,
            margin=margin,
            relative=config.relative_margin,
        )
    scale = jnp.float32(1 / config.temperature)
    if log_scale is not None:
        scale = jnp.exp(log_scale)
    losses, found = _by_dim(
        config, sides, scale=scale, limit=limit, dims=dims, axis=axis
    )
    metrics = {"accuracy": found[dims.index(max(dims))]}
    if config.matryoshka_dims:
        metrics |= {f"loss_{dim}": loss for dim, loss in zip(dims, losses, strict=True)}
    if log_scale is not None:
        metrics["scale"] = scale
    return weighted_sum(losses, config.weights), metrics


def _by_dim(
    config: ContrastiveLoss,
    sides: tuple[Texts, Texts, Texts],
    *,
    scale: float | Float32[Array, ""],
    limit: Float32[Array, " Q"] | None,
    dims: Sequence[int],
    axis: Axis | None,
) -> tuple[Float32[Array, " dims"], Float32[Array, " dims"]]:
    """Mean loss and accuracy at each dimension, not weighted."""
    all_queries, all_positives, documents = sides
    queries, positives = share(all_queries, axis), share(all_positives, axis)

    def negatives(rows: Texts, candidates: Texts):
        return sum_negatives(
            rows,
            candidates,
            scale=scale,
            limit=share(limit, axis),
            dims=dims,
            block_size=config.block_size,
        )

    own = scale * jnp.stack(
        [
            jnp.sum(
                matryoshka(queries.vectors, dim) * matryoshka(positives.vectors, dim),
                axis=1,
            )
            for dim in dims
        ]
    )  # dims Q
    total, highest = negatives(queries, documents)
    if config.query_negatives:
        total = jnp.logaddexp(total, negatives(queries, all_queries)[0])
    if config.positive_negatives:
        total = jnp.logaddexp(total, negatives(positives, all_positives)[0])
    # As a difference from the positive: a loss of 1e-9 would be lost in log-sums of 50.
    losses = jax.nn.softplus(total - own)
    if config.both_directions:
        back = jax.nn.softplus(negatives(positives, all_queries)[0] - own)
        losses = (losses + back) / 2
    means = losses.mean(axis=1), (own > highest).mean(axis=1, dtype=jnp.float32)
    return means if axis is None else jax.lax.pmean(means, axis)
