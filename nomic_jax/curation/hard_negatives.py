"""Hard negatives: documents near a query that do not answer it.

Nomic Embed (arXiv:2402.01613, section 4.3) takes the nearest documents of each query
and samples among them at random. Those that score almost as high as a known positive
are likely positives nobody marked, and are left out: NV-Retriever (arXiv:2407.15831,
section 3.2) compares each with a percentage of the positive's score.
"""

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int64

from nomic_jax.search import nearest

DRAWS = 8  # of random documents, before all are asked

MarginKind: TypeAlias = Literal["ratio", "absolute"]
TooFew: TypeAlias = Literal["fill", "drop"]


def mine(
    query_embeddings: Float[Array | np.ndarray, "Q E"],
    document_embeddings: Float[Array | np.ndarray, "M E"],
    positives: Sequence[Collection[int]],
    *,
    count: int,
    margin: float | None,
    margin_kind: MarginKind = "ratio",
    too_few: TooFew = "fill",
    pool: int = 20,
    depth: int | None = None,
    seed: int,
    excluded: Sequence[Collection[int]] | None = None,
) -> Int64[np.ndarray, "Q {count}"]:
    """Choose exactly `count` negatives for each query.

    Of the `depth` nearest documents, known positives and those above the margin are
    dropped; `count` are drawn from the first `pool` that are left. Where fewer are
    left, random documents below the margin fill up, and those above it, lowest first,
    only when nothing else is there; or the query gets none. A query's draw depends on
    `seed` and its row alone.

    Args:
        query_embeddings: unit rows.
        document_embeddings: unit rows.
        positives: the documents that answer each query, by index.
        count: negatives of each query.
        margin: what a negative may reach: a share of the lowest positive's score, in
            (0, 1], or what is left of that score when the margin is taken off; None
            lets every score pass.
        margin_kind: `ratio`, a share, or `absolute`, a difference.
        too_few: what a query meets that has fewer than `count` documents in its pool:
            `fill` adds random ones, `drop` leaves it without any.
        pool: nearest allowed documents to draw from.
        depth: nearest documents looked at, None: 5 * pool.
        seed: of the draw.
        excluded: further documents that are no negatives of each query, by index, such
            as one that is the query itself; the margin does not ask them.

    Returns:
        Document indices, nearest first, the random ones last; a query that is dropped
        has -1 everywhere.

    Raises:
        ValueError: the sizes do not fit one another, a query has no positive or too
            few documents that could be negatives.
    """
    total = document_embeddings.shape[0]
    _check(query_embeddings.shape[0], total, positives)
    check_margin(margin, margin_kind)
    depth = 5 * pool if depth is None else depth
    if not 1 <= count <= pool <= depth:
        raise ValueError(
            f"count={count}, pool={pool}, depth={depth}: negatives are drawn from a "
            "pool of the nearest, so 1 <= count <= pool <= depth is needed"
        )
    forbidden = [np.array(sorted(set(known)), np.int64) for known in positives]
    if excluded is not None:
        forbidden = [
            np.union1d(known, np.array(sorted(others), np.int64))
            for known, others in zip(forbidden, excluded, strict=True)
        ]
    queries, documents = jax.device_get((query_embeddings, document_embeddings))
    limits = _limits(queries, documents, positives, margin, margin_kind)
    scores, neighbours = nearest(
        query_embeddings, document_embeddings, k=min(depth, total)
    )
    chosen = np.empty((len(positives), count), np.int64)
    for row, banned in enumerate(forbidden):
        if too_few == "fill" and total - len(banned) < count:
            raise ValueError(
                f"query {row} has {total - len(banned)} documents that are not its "
                f"positives and needs count={count}; lower count or add documents"
            )
        random = np.random.default_rng([seed, row])
        allowed = ~np.isin(neighbours[row], banned)
        below = scores[row] <= limits[row]
        near = neighbours[row][allowed & below][:pool]
        drawn = np.sort(random.permutation(len(near))[:count])  # sorted: nearest first
        chosen[row, : len(drawn)] = near[drawn]
        missing = count - len(drawn)
        if missing and too_few == "drop":
            chosen[row] = -1
        elif missing:
            taken = np.union1d(banned, near)
            fill = _random_fill(
                documents, queries[row], limits[row], taken, missing, random
            )
            chosen[row, len(drawn) :] = fill
    return chosen


def check_margin(margin: float | None, kind: MarginKind) -> None:
    """Refuse a margin that is none of its kind.

    Raises:
        ValueError: with what is possible.
    """
    if kind not in ("ratio", "absolute"):
        raise ValueError(f"margin_kind={kind!r} must be ratio or absolute")
    if margin is None:
        return
    if kind == "ratio" and not 0 < margin <= 1:
        raise ValueError(f"margin={margin} must be in (0, 1], or None for no margin")
    if kind == "absolute" and not 0 <= margin < 2:
        raise ValueError(
            f"margin={margin} must be in [0, 2), as scores of unit vectors differ by 2 "
            "at most, or None for no margin"
        )


def _check(
    queries: int,
    documents: int,
    positives: Sequence[Collection[int]],
) -> None:
    """Refuse positives that do not belong to these embeddings.

    Raises:
        ValueError: with the numbers.
    """
    if len(positives) != queries:
        raise ValueError(
            f"positives are given for {len(positives)} of {queries} queries"
        )
    for row, known in enumerate(positives):
        if not known:
            raise ValueError(f"query {row} has no positive; leave such queries out")
        if min(known) < 0 or max(known) >= documents:
            raise ValueError(
                f"query {row} names positive {max(known, key=abs)}; documents are "
                f"numbered 0 to {documents - 1}"
            )


def _random_fill(
    documents: Float[np.ndarray, "M E"],
    query: Float[np.ndarray, "E"],
    limit: np.float32,
    taken: Int64[np.ndarray, "taken"],
    missing: int,
    random: np.random.Generator,
) -> Int64[np.ndarray, "missing"]:
    """Draw documents that are not taken and not above the limit, if there are any.

    A few are drawn and asked at a time: of a million, all but a few will do. Where that
    does not find enough, all are asked.
    """

    def scores(rows: Int64[np.ndarray, "some"]) -> Float32[np.ndarray, "some"]:
        return documents[rows].astype(np.float32) @ query.astype(np.float32)

    found = np.zeros(0, np.int64)
    for _ in range(DRAWS):
        some = random.integers(len(documents), size=4 * missing)
        _, first = np.unique(some, return_index=True)
        some = some[np.sort(first)]  # each once, as it was drawn
        some = some[~np.isin(some, taken) & ~np.isin(some, found)]
        found = np.concatenate([found, some[scores(some) <= limit]])
        if len(found) >= missing:
            return found[:missing]
    rest = np.setdiff1d(np.arange(len(documents)), np.union1d(taken, found))
    rest = random.permutation(rest)
    asked = scores(rest)
    above = rest[asked > limit][np.argsort(asked[asked > limit], kind="stable")]
    return np.concatenate([found, rest[asked <= limit], above])[:missing]


def _limits(
    queries: Float[np.ndarray, "Q E"],
    documents: Float[np.ndarray, "M E"],
    positives: Sequence[Collection[int]],
    margin: float | None,
    kind: MarginKind,
) -> Float32[np.ndarray, "Q"]:
    """Compute the highest score a negative of each query may have."""
    if margin is None:
        return np.full(len(positives), np.inf, np.float32)
    lowest = np.array(
        [
            (documents[sorted(known)].astype(np.float32) @ query).min()
            for known, query in zip(positives, queries.astype(np.float32), strict=True)
        ],
        np.float32,
    )
    if kind == "absolute":
        return (lowest - margin).astype(np.float32)
    # Equal to margin * lowest for a positive score; below a negative one, not above.
    return (lowest - (1 - margin) * np.abs(lowest)).astype(np.float32)
