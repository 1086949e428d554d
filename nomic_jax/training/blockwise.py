"""The negatives of every pair: what counts as one, and the log-sum of their weights.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) needs of its negatives
only `log(sum(exp(logit)))`, which adds up over blocks of candidates. With each block's
logits computed anew in the backward pass, as Gao et al. 2021 (arXiv:2101.06983) do with
activations and Dao et al. 2022 (arXiv:2205.14135) with attention, the matrix of all
logits is never held.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from nomic_jax.batch import as_pytree
from nomic_jax.model.pooling import matryoshka, normalize

HARD_NEGATIVE = -1  # the pair of a document that answers no query
FILLING = -2  # the pair of what fills up the last block

# Stands for a logit of minus infinity, of which no difference or gradient is NaN where
# a row has no negative at all: its exponential is zero beside any cosine's.
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

    A candidate is no negative of a row where it belongs to the row's own pair as its
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
