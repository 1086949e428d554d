"""InfoNCE over cosines and its variants, in blocks, at every Matryoshka dimension.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) needs of its negatives
only `log(sum(exp(logit)))`, which adds up over blocks of candidates. With each block's
logits computed again in the backward pass, as Gao et al. 2021 (arXiv:2101.06983) do
with activations and Dao et al. 2022 (arXiv:2205.14135) with attention, the matrix of
all logits is never held.

The Matryoshka loss of a batch (Kusupati et al. 2022, arXiv:2205.13147, section 3,
equation 1) is the sum over dimensions of weight times loss, each prefix scaled to unit
length; a sum, not a mean, so every further dimension makes the gradient larger.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from nomic_jax.batch import as_pytree
from nomic_jax.model.pooling import matryoshka, normalize

HARD_NEGATIVE = -1  # the pair of a document that answers no query
FILLING = -2  # the pair of what fills up the last block
# Stands for a logit of minus infinity, of which no difference or gradient is NaN where
# a row has no negative at all: its exponential is zero next to any cosine's.
MASKED = -1e30
Guide = tuple[Float[Array, "Q G"], Float[Array, "M G"]]  # of queries and documents
Axis = str | tuple[str, ...]  # of a mesh
Tree = TypeVar("Tree")


@as_pytree
@dataclasses.dataclass(frozen=True)
class Texts:
    """Vectors of one side of a batch's pairs, and what says which are no negatives."""

    vectors: Float32[Array, "N E"]
    pairs: Int[Array, " N"]  # whose query or positive it is
    ids: Int[Array, "N 2"] | None  # of the document; for a query, of its positive
    guide: Float32[Array, "N G"] | None  # unit vectors of another opinion


def sides_of_pairs(
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    document_ids: Int[Array, "M 2"] | None,
    guide: Guide | None,
) -> tuple[Texts, Texts, Texts]:
    """Sort a batch into queries, their positives, and all documents.

    Raises:
        ValueError: the documents do not come in groups of equal size.
    """
    count = query.shape[0]
    if document.shape[0] % count:
        raise ValueError(
            f"{document.shape[0]} documents do not split among {count} "
            "queries; give each its positive and the same number of hard negatives"
        )
    group = document.shape[0] // count
    vectors = document.astype(jnp.float32)
    pairs = jnp.arange(count)
    of_documents = jnp.where(
        jnp.arange(group)[None] == 0, pairs[:, None], HARD_NEGATIVE
    ).reshape(-1)
    asked, told = (None, None) if guide is None else map(_unit_guide, guide)

    def first(x: Array | None) -> Array | None:
        # Of each group.
        return None if x is None else x.reshape(count, group, -1)[:, 0]

    ids = first(document_ids)
    return (
        Texts(query.astype(jnp.float32), pairs, ids, asked),
        Texts(vectors.reshape(count, group, -1)[:, 0], pairs, ids, first(told)),
        Texts(vectors, of_documents, document_ids, told),
    )


def share(values: Tree, axis: Axis | None) -> Tree:
    """Take the part of each array's rows that is this device's along a mesh axis."""
    if axis is None:
        return values

    def part(x: Array) -> Array:
        count = x.shape[0] // jax.lax.axis_size(axis)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * count, count)

    return jax.tree.map(part, values)


def inner_products(
    first: Float32[Array, "Q E"], second: Float32[Array, "M E"]
) -> Float32[Array, "Q M"]:
    """Multiply all rows with all rows, each product and sum in float32."""
    # By default accelerators round float32 operands of a product to bfloat16 or TF32,
    # which a scale of 50 would make an error of tenths in the logits.
    return jnp.matmul(first, second.T, precision=jax.lax.Precision.HIGHEST)


def sum_negatives(
    rows: Texts,
    candidates: Texts,
    *,
    scale: float | Float32[Array, ""],
    limit: Float32[Array, " Q"] | None,
    dims: Sequence[int],
    block_size: int | None,
) -> tuple[Float32[Array, "dims Q"], Float32[Array, "dims Q"]]:
    """Sum the exponentials of each row's negatives among the candidates.

    A candidate is not a negative of a row where it belongs to the row's own pair as its
    positive or query, where its id is that of the row's positive, or where the guide
    finds it nearer to the row than `limit`. This is decided once for all dimensions.

    Args:
        rows: one a pair.
        candidates: any number.
        scale: of the cosines.
        limit: guide's cosine above which a candidate is masked; None: no guide.
        dims: how many entries of the vectors count, once each.
        block_size: candidates whose logits are held at once; None: all of them.

    Returns:
        The sums' logarithms, and the highest logits without gradient; about `MASKED`
        for a row without negatives.
    """
    # Scaled here and not below: the gradient of a scale is then no business of blocks.
    anchors = [scale * matryoshka(rows.vectors, dim) for dim in dims]

    def of_block(block: Texts):
        excluded = _excluded(rows, block, limit)
        sums, highest = [], []
        for dim, anchor in zip(dims, anchors, strict=True):
            logits = inner_products(anchor, matryoshka(block.vectors, dim))
            logits = jnp.where(excluded, MASKED, logits)
            sums.append(jax.nn.logsumexp(logits, axis=1))
            highest.append(jax.lax.stop_gradient(logits).max(axis=1))
        return jnp.stack(sums), jnp.stack(highest)

    count = candidates.pairs.shape[0]
    if block_size is None or block_size >= count:
        return of_block(candidates)
    # The loop already keeps the compiler from sharing forward and backward values.
    remade = jax.checkpoint(of_block, prevent_cse=False)
    sums, highest = jax.lax.map(remade, _in_blocks(candidates, block_size))
    return jax.nn.logsumexp(sums, axis=0), highest.max(axis=0)


def guide_limit(
    query: Float32[Array, "Q G"],
    positive: Float32[Array, "Q G"],
    *,
    margin: float,
    relative: bool,
) -> Float32[Array, " Q"]:
    """Say from which cosine on a candidate passes for a second positive of a pair.

    Solatorio 2024 (GISTEmbed, arXiv:2402.16829, section 3) compares with the positive's
    own cosine, a margin of zero. A margin widens what is masked: by itself, or relative
    to that cosine (Moreira et al. 2024, arXiv:2407.15831, section 3, "perc pos").
    """
    own = jnp.sum(query * positive, axis=-1)
    return own - margin * (jnp.abs(own) if relative else 1.0)


def _unit_guide(vectors: Float[Array, "N G"]) -> Float32[Array, "N G"]:
    """Make a guide's vectors comparable; no gradient reaches the guide."""
    return normalize(jax.lax.stop_gradient(vectors).astype(jnp.float32))


def _excluded(
    rows: Texts, block: Texts, limit: Float32[Array, " Q"] | None
) -> Bool[Array, "Q block"]:
    """Mark the candidates that are no negatives of a row."""
    excluded = rows.pairs[:, None] == block.pairs[None]
    excluded |= (block.pairs == FILLING)[None]
    if rows.ids is not None and block.ids is not None:
        # One half at a time: Q M 2 would be the largest array of the loss.
        first, second = (
            ours[:, None] == theirs[None]
            for ours, theirs in zip(rows.ids.T, block.ids.T, strict=True)
        )
        excluded |= first & second
    if limit is not None and rows.guide is not None and block.guide is not None:
        excluded |= inner_products(rows.guide, block.guide) > limit[:, None]
    return excluded


def _in_blocks(texts: Texts, size: int) -> Texts:
    """Stack blocks of equal size, the last one filled up."""
    missing = -texts.pairs.shape[0] % size

    def fill(x: Array, value: int = 0) -> Array:
        ends = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, ends, constant_values=value)

    filled = dataclasses.replace(
        jax.tree.map(fill, texts), pairs=fill(texts.pairs, FILLING)
    )
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), filled)


def check_dims(dims: Sequence[int], weights: Sequence[float], width: int) -> None:
    """Refuse dimensions that a vector does not have, or weights that do not match.

    Raises:
        ValueError: with the dimensions.
    """
    if any(not 1 <= dim <= width for dim in dims) or len(set(dims)) < len(dims):
        raise ValueError(
            f"matryoshka dims {tuple(dims)} must be different numbers from 1 to the "
            f"embedding's width, {width}"
        )
    if len(weights) != len(dims):
        raise ValueError(
            f"{len(weights)} matryoshka weights for {len(dims)} dims; give one each"
        )


def weighted_sum(
    losses: Float32[Array, " dims"], weights: Sequence[float]
) -> Float32[Array, ""]:
    """Add up the losses of all dimensions, each times its weight."""
    return jnp.sum(losses * jnp.asarray(weights, jnp.float32))


def matryoshka_loss(
    loss: Callable[[Array, Array], Float32[Array, ""]],
    query: Float[Array, "Q E"],
    document: Float[Array, "M E"],
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, " dims"]]:
    """Give a loss of queries and documents the prefixes of both.

    Args:
        loss: scales what it is given to unit length itself.
        query: at full width.
        document: at full width.
        dims: lengths of the prefixes.
        weights: of the dims' losses; None: 1 each.

    Returns:
        The weighted sum, and the losses it is made of.

    Raises:
        ValueError: a dim is not within the width, or weights are missing.
    """
    weights = [1.0] * len(dims) if weights is None else weights
    check_dims(dims, weights, query.shape[1])
    losses = jnp.stack([loss(query[:, :dim], document[:, :dim]) for dim in dims])
    return weighted_sum(losses, weights), losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveLoss:
    """InfoNCE and its variants."""

    temperature: float = 0.02  # similarities are divided by it; the published value
    learned_scale: bool = False  # 1 / temperature is only where the scale starts
    max_scale: float = 100.0  # where steps set a learned scale back: arXiv:2103.00020
    both_directions: bool = False  # mean with choosing the query of each positive
    query_negatives: bool = False  # a query is told from the other queries too
    positive_negatives: bool = False  # and its positive from the other positives
    # No candidate is a negative whose guide cosine is above the positive's less this.
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
    the other queries next to `i`'s too, and with `positive_negatives` the other
    positives next to its positive, as in GISTEmbed (arXiv:2402.16829, section 3). With
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
