"""Exact nearest neighbours by inner product, a block of documents at a time.

The matrix of all scores is never held: each block's scores are merged into the best `k`
found so far, as brute-force search does on accelerators (Johnson et al. 2017,
arXiv:1702.08734, section 5.1). Where the hardware multiplies bfloat16 faster, rounded
vectors choose candidates first. What rounding can change of a score is bounded, and
where the bound leaves a query in doubt, it is searched again in float32.

A block's documents are split over this host's devices; each keeps the best `k` of those
it saw, and the lists are merged at the end. Top-k is slow next to a matmul, so it looks
at the maxima of groups of neighbouring documents first, and only into groups whose
maximum is above the `k`-th score so far. The best `k` documents are in the `k` groups
with the highest maxima, and of groups with equal ones in those that come first (as in
Chern et al. 2022, arXiv:2206.14286, but exact).
"""

import functools
import platform
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

QUERY_BLOCK = 256  # queries scored at once: 256 x 8,192 float32 scores are 8 MiB
GROUP = 32  # neighbouring documents of which a maximum is taken
FEW_GROUPS = 8  # looked into at once, or eight times as many and so on
Rounding: TypeAlias = Literal["none", "bfloat16"]
Numbers: TypeAlias = Array | np.ndarray


class Best(NamedTuple):
    """What each device has found so far; each leaf begins with an axis of devices."""

    scores: Float32[Array, "D parts B K"]  # highest first; -inf: nothing yet
    indices: Int32[Array, "D parts B K"]
    norms: Float32[Array, "D 2"]  # longest document, and longest error of rounding one


class Found(NamedTuple):
    """The best documents of each query by the scores that were computed."""

    scores: Float32[np.ndarray, "Q K"]
    indices: Int32[np.ndarray, "Q K"]
    longest: float  # norm among the documents
    error: float  # longest norm of what rounding took from a document


SILENT = 10  # seconds before a search shows how far it is


def scan(
    queries: Float[Numbers, "Q E"],
    documents: Float[Numbers, "M E"],
    *,
    k: int,
    block: int,
    rounding: Rounding = "none",
) -> Found:
    """Score every document, summing in float32, and keep the best `k` of each query.

    Of equal scores the document with the lower index comes first.

    Args:
        queries: stay on every device.
        documents: stream past.
        k: at most the number of documents.
        block: documents scored at once, by all devices together.
        rounding: of the factors of the products. Rounded ones are quick on hardware
            that multiplies them as they are; the scores are then approximate.
    """
    from tqdm import tqdm

    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("documents",))
    spread = NamedSharding(mesh, PartitionSpec("documents"))
    number, width = queries.shape
    rows = _power_of_two_from(number, QUERY_BLOCK)
    parts = max(-(-number // rows), 1)
    padded = np.zeros((parts * rows, width), np.asarray(queries[:0]).dtype)
    padded[:number] = queries
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = jax.device_put(padded.reshape(parts, rows, width), everywhere)
    shape = (len(devices), parts, rows, k)
    best = Best(
        jnp.full(shape, -jnp.inf, jnp.float32, device=spread),
        jnp.full(shape, -1, jnp.int32, device=spread),
        jnp.zeros((len(devices), 2), jnp.float32, device=spread),
    )
    total = documents.shape[0]
    with tqdm(
        total=total,
        desc="search",
        unit="row",
        unit_scale=True,
        delay=SILENT,
        leave=False,
    ) as bar:
        for offset, valid, some in _blocks(documents, block, len(devices)):
            candidates = jax.device_put(some, spread)
            # Otherwise the host runs ahead and puts every block on the devices at once.
            jax.block_until_ready(best)
            bar.update(offset - bar.n)
            place = jnp.int32(offset), jnp.int32(valid)
            best = _seen(best, split, candidates, *place, mesh, rounding)
    scores, indices = (
        np.moveaxis(np.asarray(leaf), 0, 2).reshape(parts * rows, -1)[:number]
        for leaf in (best.scores, best.indices)
    )
    if len(devices) > 1:
        order = np.lexsort((indices, -scores), axis=1)[:, :k]
        scores, indices = (
            np.take_along_axis(each, order, axis=1) for each in (scores, indices)
        )
    longest, error = np.asarray(best.norms).max(axis=0)
    return Found(scores, indices, float(longest), float(error))


@functools.partial(jax.jit, static_argnums=(5, 6), donate_argnums=0)
def _seen(
    best: Best,
    queries: Float[Array, "parts B E"],
    documents: Float[Array, "M E"],
    offset: Int[Array, ""],
    valid: Int[Array, ""],
    mesh: Mesh,
    rounding: Rounding,
) -> Best:
    """Let every device merge its documents of a block into its best."""
    own = functools.partial(_seen_by_one, rounding=rounding)
    split, whole = PartitionSpec("documents"), PartitionSpec()
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(split, whole, split, whole, whole),
        out_specs=split,
        check_vma=False,
    )(best, queries, documents, offset, valid)


def _seen_by_one(
    best: Best,
    queries: Float[Array, "parts B E"],
    documents: Float[Array, "M E"],
    offset: Int[Array, ""],
    valid: Int[Array, ""],
    *,
    rounding: Rounding,
) -> Best:
    dtype, precision = jnp.float32, jax.lax.Precision.HIGHEST
    documents, norms = documents.astype(jnp.float32), best.norms
    factors = documents
    if rounding != "none":
        dtype, precision = jnp.dtype(rounding), None
        # Kept from being taken for an identity: float32 to bfloat16 and back.
        factors = jax.lax.optimization_barrier(documents.astype(dtype))
        off = documents - factors.astype(jnp.float32)
        lengths = jnp.sqrt(jnp.stack([(documents**2).sum(1), (off**2).sum(1)]))
        norms = jnp.maximum(norms, lengths.max(axis=1)[None])
    first = jax.lax.axis_index("documents") * documents.shape[0]

    def part(
        of: tuple[Float[Array, "B E"], Float32[Array, "B K"], Int32[Array, "B K"]],
    ) -> tuple[Float32[Array, "B K"], Int32[Array, "B K"]]:
        some, scores, indices = of
        products = jax.lax.dot_general(
            some.astype(dtype),
            factors,
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        return _merged(scores, indices, products, offset + first, valid - first)

    scores, indices = jax.lax.map(part, (queries, best.scores[0], best.indices[0]))
    return Best(scores[None], indices[None], norms)


def _merged(
    scores: Float32[Array, "B K"],
    indices: Int32[Array, "B K"],
    products: Float32[Array, "B M"],
    offset: Int[Array, ""],
    valid: Int[Array, ""],
) -> tuple[Float32[Array, "B K"], Int32[Array, "B K"]]:
    """Merge a block's scores into the best so far, which have the lower indices."""
    rows, k = scores.shape
    width = GROUP if products.shape[1] % GROUP == 0 else 1
    grouped = products.reshape(rows, -1, width)
    num_groups = grouped.shape[1]

    within = jnp.arange(width, dtype=jnp.int32)[None, None]

    def comparable(
        values: Float32[Array, "B C width"], columns: Int32[Array, "#B C width"]
    ) -> Float32[Array, "B C width"]:
        # A NaN may sort below every number and go unseen; infinity is found.
        values = jnp.where(jnp.isnan(values), jnp.inf, values)
        return jnp.where(columns < valid, values, -jnp.inf)

    every = jnp.arange(num_groups, dtype=jnp.int32)[None]
    maxima = comparable(grouped, every[..., None] * width + within).max(axis=2)

    def look_into(number: int) -> tuple[Any, Any]:
        if number == num_groups:
            groups, values = jnp.broadcast_to(every, (rows, number)), grouped
        else:
            # In the order of their documents: top_k puts the first of equals first.
            groups = jnp.sort(jax.lax.top_k(maxima, number)[1], axis=1)
            values = jnp.take_along_axis(grouped, groups[..., None], axis=1)
        columns = groups[..., None] * width + within
        values = comparable(values, columns).reshape(rows, -1)
        seen = jnp.concatenate([indices, columns.reshape(rows, -1) + offset], axis=1)
        top, where = jax.lax.top_k(jnp.concatenate([scores, values], axis=1), k)
        return top, jnp.take_along_axis(seen, where, axis=1)

    # A later document only counts with a higher score: equals have lower indices.
    above = (maxima > scores[:, -1:]).sum(axis=1).max()
    numbers = [FEW_GROUPS]
    while numbers[-1] < min(k, num_groups):
        numbers.append(8 * numbers[-1])
    numbers = [min(n, k, num_groups) for n in numbers]
    enough = sum(above > number for number in numbers[:-1])
    return jax.lax.switch(
        enough, [functools.partial(look_into, number) for number in numbers]
    )


def _blocks(
    rows: Float[Numbers, "M E"], size: int, devices: int
) -> Iterator[tuple[int, int, Float[Numbers, "block E"]]]:
    """Yield (first row, number of rows, rows padded to a common shape) of each block.

    A set smaller than a block is padded to a power of two only, so small sets stay
    cheap and few programs are compiled. Devices get equal numbers of whole groups.
    """
    own = -(-_power_of_two_from(rows.shape[0], size) // devices)
    own = own if own < 32 * GROUP else -(-own // GROUP) * GROUP
    whole = own * devices
    for start in range(0, rows.shape[0], whole):
        part = rows[start : start + whole]
        if part.shape[0] == whole:
            yield start, whole, part
            continue
        padding = np.zeros((whole - part.shape[0], rows.shape[1]), part.dtype)
        yield start, part.shape[0], np.concatenate([np.asarray(part), padding])


def _power_of_two_from(number: int, most: int) -> int:
    """Return the least power of two that is not below a number, or `most` at most."""
    return min(most, 1 << max(number - 1, 0).bit_length())


DOCUMENT_BLOCK = 8192
COARSE_DOCUMENTS = 65_536  # below, and for few queries, one exact pass is quick enough
COARSE_QUERIES = 64
TINY = 1e-12  # norm
RESCORED_AT_ONCE = 1 << 25  # numbers of candidates: 128 MiB


def top_k(
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
