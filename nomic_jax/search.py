"""Exact nearest neighbours by inner product, a block of documents at a time.

The matrix of all scores is never held: each block's scores are merged into the best `k`
found so far, as brute-force search does on accelerators (Johnson et al. 2017,
arXiv:1702.08734, section 5.1).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

QUERY_BLOCK = 512  # queries scored at once: 512 x 8192 float32 scores are 16 MiB
DOCUMENT_BLOCK = 8192


def nearest(
    queries: Float[Array | np.ndarray, "Q E"],
    documents: Float[Array | np.ndarray, "M width"],
    *,
    k: int,
    block: int = DOCUMENT_BLOCK,
) -> tuple[Float32[np.ndarray, "Q {k}"], Int32[np.ndarray, "Q {k}"]]:
    """Find the `k` documents whose inner product with each query is highest.

    Rows of unit length give cosine similarity. Products are summed in float32 whatever
    the inputs are. Of equal scores the document with the lower index comes first.

    Args:
        queries: kept on the device while the documents stream past.
        documents: may be larger than the device's memory when they are NumPy's.
        k: neighbours of each query.
        block: documents scored at once.

    Returns:
        Scores, highest first, and the documents' indices.

    Raises:
        ValueError: `k` or `block` does not suit the number of documents, the widths
            differ, or a score is not finite.
    """
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, documents "
            f"{documents.shape[1]}; embed both with the same model and dim"
        )
    if not 1 <= k <= documents.shape[0]:
        raise ValueError(
            f"k={k} neighbours asked of {documents.shape[0]} documents; "
            f"k must be between 1 and {documents.shape[0]}"
        )
    if block < 1:
        raise ValueError(f"block={block} documents at once; it must be at least 1")
    parts = [
        (start, jnp.asarray(rows)) for start, _, rows in _blocks(queries, QUERY_BLOCK)
    ]
    best = [_nothing(rows.shape[0], k) for _, rows in parts]
    for offset, valid, rows in _blocks(documents, block):
        candidates = jnp.asarray(rows)
        best = [
            _merge(found, part, candidates, offset, valid)
            for found, (_, part) in zip(best, parts, strict=True)
        ]
        # Otherwise the host runs ahead and puts every block on the device at once.
        jax.block_until_ready(best)
    scores = np.empty((queries.shape[0], k), np.float32)
    indices = np.empty((queries.shape[0], k), np.int32)
    for (start, _), (some_scores, some_indices) in zip(parts, best, strict=True):
        room = scores[start : start + QUERY_BLOCK]
        room[:] = np.asarray(some_scores)[: len(room)]
        indices[start : start + QUERY_BLOCK] = np.asarray(some_indices)[: len(room)]
    if not np.isfinite(scores).all():
        row, rank = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"query {row} and document {indices[row, rank]} have no finite score; look "
            "for NaN, infinity or very large values in the embeddings"
        )
    return scores, indices


@functools.partial(jax.jit, donate_argnums=0)
def _merge(
    best: tuple[Float32[Array, "B K"], Int32[Array, "B K"]],
    queries: Float[Array, "B E"],
    documents: Float[Array, "M E"],
    offset: Int[Array, ""] | int,
    valid: Int[Array, ""] | int,
) -> tuple[Float32[Array, "B K"], Int32[Array, "B K"]]:
    """Merge a block's scores into the best so far, which have the lower indices."""
    scores = jnp.matmul(
        queries.astype(jnp.float32),
        documents.astype(jnp.float32).T,
        # Accelerators would round float32 factors to bfloat16 or TF32.
        precision=jax.lax.Precision.HIGHEST,
    )
    # A NaN may sort below every number and go unseen; infinity is found, and refused.
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    columns = jnp.arange(documents.shape[0], dtype=jnp.int32)[None]
    scores = jnp.where(columns < valid, scores, -jnp.inf)
    indices = jnp.broadcast_to(columns + offset, scores.shape)
    # top_k puts the lower column first among equals, so earlier blocks stand in front.
    top, where = jax.lax.top_k(
        jnp.concatenate([best[0], scores], axis=1), best[0].shape[1]
    )
    every = jnp.concatenate([best[1], indices], axis=1)
    return top, jnp.take_along_axis(every, where, axis=1)


def _nothing(rows: int, k: int) -> tuple[Float32[Array, "B K"], Int32[Array, "B K"]]:
    """Stand in for the best `k` before any document is seen."""
    return jnp.full((rows, k), -jnp.inf, jnp.float32), jnp.full((rows, k), -1)


def _blocks(
    rows: Float[Array | np.ndarray, "N E"], size: int
) -> Iterator[tuple[int, int, Float[Array | np.ndarray, "block E"]]]:
    """Yield (first row, number of rows, rows padded to a common shape) of each block.

    A set smaller than a block is padded to a power of two only, so small sets stay
    cheap and few programs are compiled.
    """
    size = min(size, 1 << max(rows.shape[0] - 1, 0).bit_length())
    for start in range(0, rows.shape[0], size):
        part = rows[start : start + size]
        padding = np.zeros((size - part.shape[0], rows.shape[1]), part.dtype)
        whole = np.concatenate([np.asarray(part), padding]) if len(padding) else part
        yield start, part.shape[0], whole
