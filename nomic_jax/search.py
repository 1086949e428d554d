"""Exact nearest neighbours by inner product, a block of documents at a time.

The matrix of all scores is never held: each block's scores are merged into the best `k`
found so far, as brute-force search does on accelerators (Johnson et al. 2017,
arXiv:1702.08734, section 5.1). Where the hardware multiplies bfloat16 faster, rounded
vectors choose candidates first. What rounding can change of a score is bounded, and
where the bound leaves a query in doubt, it is searched again in float32.
"""

import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from nomic_jax.document_scan import Found, Numbers, scan

DOCUMENT_BLOCK = 8192
COARSE_DOCUMENTS = 65_536  # below, and for few queries, one exact pass is quick enough
COARSE_QUERIES = 64
TINY = 1e-12  # norm
RESCORED_AT_ONCE = 1 << 25  # numbers of candidates: 128 MiB


def nearest(
    queries: Float[Numbers, "Q E"],
    documents: Float[Numbers, "M width"],
    *,
    k: int,
    block: int = DOCUMENT_BLOCK,
) -> tuple[Float32[np.ndarray, "Q {k}"], Int32[np.ndarray, "Q {k}"]]:
    """Find the `k` documents whose inner product with each query is highest.

    Rows of unit length give cosine similarity. Products are summed in float32 whatever
    the inputs are. Of equal scores the document with the lower index comes first. All
    devices of this host share the work.

    Args:
        queries: kept on the devices while the documents stream past.
        documents: may be larger than the devices' memory when they are NumPy's.
        k: neighbours of each query.
        block: documents scored at once, by all devices together.

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
    rough = _candidates(k)
    if (
        queries.shape[0] >= COARSE_QUERIES
        and documents.shape[0] >= max(COARSE_DOCUMENTS, 16 * rough)
        and _multiplies_bfloat16()
    ):
        scores, indices = _by_candidates(queries, documents, k, block)
    else:
        scores, indices, *_ = scan(queries, documents, k=k, block=block)
    if not np.isfinite(scores).all():
        row, rank = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"query {row} and document {indices[row, rank]} have no finite score; look "
            "for NaN, infinity or very large values in the embeddings"
        )
    return scores, indices


def _candidates(k: int) -> int:
    """Return how many documents the rounded vectors choose.

    Of a million random unit vectors of 768 entries about twice as many as wanted score
    within the bound of the `k`-th.
    """
    return 2 * k + 64


def _by_candidates(
    queries: Float[Numbers, "Q E"], documents: Float[Numbers, "M E"], k: int, block: int
) -> tuple[Float32[np.ndarray, "Q K"], Int32[np.ndarray, "Q K"]]:
    """Choose candidates by rounded vectors, score them exactly, check that all is in.

    A score is off by at most |q'| |d - d'| + |q - q'| |d|, where ' means rounded.
    """
    found = scan(queries, documents, k=_candidates(k), block=block, rounding="bfloat16")
    scores, indices = _rescored(queries, documents, np.sort(found.indices, axis=1), k)
    doubtful = np.flatnonzero(~_certain(queries, found, scores))
    if len(doubtful):
        again = scan(np.asarray(queries)[doubtful], documents, k=k, block=block)
        scores[doubtful], indices[doubtful] = again.scores, again.indices
    return scores, indices


def _certain(
    queries: Float[Numbers, "Q E"], found: Found, scores: Float32[np.ndarray, "Q K"]
) -> Bool[np.ndarray, "Q"]:
    """Say of which queries no document but the candidates can be among the best."""
    exact = np.asarray(queries, np.float32)
    rounded = np.asarray(exact.astype(jnp.bfloat16), np.float32)
    lengths = np.linalg.norm(exact, axis=1), np.linalg.norm(rounded, axis=1)
    off = np.linalg.norm(exact - rounded, axis=1)
    bound = lengths[1] * found.error + off * found.longest
    # Sums of E products in float32, once rounded and once not, each off by E * 2^-24 of
    # the product of lengths; hardware that cuts instead of rounding doubles that.
    bound += lengths[0] * found.longest * exact.shape[1] * 2.0**-22
    with np.errstate(invalid="ignore"):  # what is not finite is in doubt, too
        certain = found.scores[:, -1] + bound < scores[:, -1]
    # Squares of tinier numbers are zero, and say nothing of lengths.
    return certain & (np.minimum(lengths[0], found.longest) > TINY)


def _rescored(
    queries: Float[Numbers, "Q E"],
    documents: Float[Numbers, "M E"],
    candidates: Int32[np.ndarray, "Q C"],
    k: int,
) -> tuple[Float32[np.ndarray, "Q K"], Int32[np.ndarray, "Q K"]]:
    """Score candidates in float32 and keep the best; their indices ascend."""
    number, width = queries.shape
    scores = np.empty((number, k), np.float32)
    indices = np.empty((number, k), np.int32)
    rows = max(RESCORED_AT_ONCE // (candidates.shape[1] * width), 1)
    for start in range(0, number, rows):
        some = slice(start, start + rows)
        chosen = candidates[some]
        rows_of = np.asarray(documents[chosen], np.float32)
        # One product after the other, all in one order: equal documents score equally.
        products = np.vecdot(rows_of, np.asarray(queries[some], np.float32)[:, None])
        order = np.argsort(-products, axis=1, kind="stable")[:, :k]
        scores[some] = np.take_along_axis(products, order, axis=1)
        indices[some] = np.take_along_axis(chosen, order, axis=1)
    return scores, indices


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Say whether this hardware multiplies bfloat16 faster than float32."""
    if jax.default_backend() != "cpu":
        return True
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        with open("/proc/cpuinfo") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False
