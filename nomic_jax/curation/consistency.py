"""The consistency filter: a pair stays when its document is found by its query.

Nomic Embed (arXiv:2402.01613, section 3.2) embeds blocks of a million pairs with an
existing model, and keeps those whose document is among the two nearest to the query in
the block; of 470 million pairs 235 million stayed. The last block takes the rest, as in
contrastors: a small block has few rivals, and would let most pairs through.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from nomic_jax.embedder import Embedder
from nomic_jax.search import nearest
from nomic_jax.sources.pairs import Pair, PairColumns
from nomic_jax.sources.source import Place, Source

DEPTH = 10  # ranks told apart in reports
# Scores of unit rows that are closer than this are equal: float32 sums of a thousand
# products are off by less.
TOLERANCE = 1e-5
OWN_ANSWERS = 100  # of one query, that are looked past at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filtering:
    """Which pairs stay, and what judges them."""

    # Folder or hub id of what embeds them; the paper's is thenlper/gte-base. Empty: the
    # model that the run has trained so far, with the prefixes of each source.
    model: str = ""
    k: int = 2  # nearest documents of a query, among which its own must be
    block: int = 1_000_000  # pairs searched together; the last block takes the rest
    query_prefix: str | None = None  # put before each query; None: the model's, if any
    document_prefix: str | None = None  # put before each document; None: the same
    max_length: int = 512  # tokens; longer texts are cut; a model may take fewer
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet

    def __post_init__(self) -> None:
        """Refuse numbers that filter nothing.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        for name in ("query_prefix", "document_prefix"):
            if not self.model and getattr(self, name) is not None:
                problems.append(
                    f"{name}={getattr(self, name)!r} is of a model, and none is named; "
                    "without one each source brings its own"
                )
        if not 1 <= self.k < self.block:
            problems.append(
                f"k={self.k} of block={self.block} pairs: 1 <= k < block is needed, "
                "or no pair can fail"
            )
        if self.max_length < 3:
            problems.append(
                f"max_length={self.max_length} must be at least 3: [CLS] token [SEP]"
            )
        if self.blank not in ("error", "drop"):
            problems.append(f"blank={self.blank!r} must be error or drop")
        if problems:
            raise ValueError("Filtering: " + "; ".join(problems))


@dataclasses.dataclass(frozen=True)
class Judged:
    """A pair, its row in the source, and where its document stands for its query."""

    row: int
    pair: Pair
    score: float  # of its own document
    rank: int  # 1: no document of the block scores higher; DEPTH or k + 1: at least


def blocks(rows: int, size: int) -> list[tuple[int, int]]:
    """Return the first row of each block and the one after its last."""
    number = max(rows // size, 1)
    ends = [size * i for i in range(1, number)] + [rows]
    return list(zip([0, *ends], ends, strict=False))


def ranks(
    queries: Float32[np.ndarray, "Q E"],
    documents: Float32[np.ndarray, "M E"],
    pairs: Int64[np.ndarray, "N 2"],
    *,
    depth: int,
) -> tuple[Float32[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
    """Rank each pair's document among all others for its query.

    Only documents that score higher by more than `TOLERANCE` stand before it, and none
    that answers the same query.

    Args:
        queries: unit rows, each of another text.
        documents: unit rows, each of another text.
        pairs: the numbers of each pair's query and document.
        depth: ranks above are `depth + 1`.

    Returns:
        The score of each pair, and its rank from 1.
    """
    answers = np.unique(pairs @ np.array([len(documents), 1]))  # one number each
    _, several = np.unique(answers // len(documents), return_counts=True)
    # Where a query's own answers fill the list its rivals find room behind them.
    most = min(int(several.max()) - 1, OWN_ANSWERS)
    best, found = nearest(queries, documents, k=min(depth + most, len(documents)))
    numbers = np.arange(len(queries))[:, None] * len(documents) + found
    best = np.where(np.isin(numbers, answers), -np.inf, best)
    own = np.empty(len(pairs), np.float32)
    ranked = np.empty(len(pairs), np.int64)
    step = 1 << 16  # rows copied at once
    for start in range(0, len(pairs), step):
        query, document = pairs[start : start + step].T
        score = np.vecdot(queries[query], documents[document])
        higher = best[query] > score[:, None] + np.float32(TOLERANCE)
        own[start : start + step] = score
        ranked[start : start + step] = higher.sum(axis=1) + 1
    return own, np.minimum(ranked, depth + 1)


def judge(
    source: Source,
    columns: PairColumns,
    start: int,
    stop: int,
    embedder: Embedder,
    filtering: Filtering,
    *,
    progress: bool = False,
) -> Iterator[Judged]:
    """Judge a block of pairs against one another; blank ones have rank 0.

    Equal texts are embedded once, and equal documents are one rival.

    Args:
        source: any source of pairs.
        columns: of its texts.
        start: first row of the block.
        stop: row after its last.
        embedder: with the tasks `query` and `document`, as `with_own_prompts` gives.
        filtering: what is asked of a pair.
        progress: show bars of the tokens embedded.

    Raises:
        ValueError: a row holds no pair.
    """
    rows = _pairs(source, columns, start, stop, filtering.blank)
    queries: dict[str, int] = {}
    documents: dict[str, int] = {}
    places = np.array(
        [
            (
                queries.setdefault(pair.query, len(queries)),
                documents.setdefault(pair.document, len(documents)),
            )
            for _, pair in rows
            if not _is_blank(pair)
        ],
        np.int64,
    ).reshape(-1, 2)
    scores, ranked = np.zeros(0, np.float32), np.zeros(0, np.int64)
    if len(places):
        scores, ranked = ranks(
            embedder.encode(list(queries), task="query", progress=progress),
            embedder.encode(list(documents), task="document", progress=progress),
            places,
            depth=max(DEPTH, filtering.k),
        )
    found = iter(zip(scores.tolist(), ranked.tolist(), strict=True))
    for row, pair in rows:
        score, rank = (0.0, 0) if _is_blank(pair) else next(found)
        yield Judged(row, pair, score, rank)


def stays(judged: Judged, filtering: Filtering) -> bool:
    """Say whether a pair is kept."""
    return 1 <= judged.rank <= filtering.k


def account(judged: Sequence[Judged], filtering: Filtering) -> dict[str, Any]:
    """Count what stayed, what went and why; sums, so that blocks add up."""
    names = [str(rank) for rank in range(1, DEPTH + 1)]
    counts = collections.Counter(
        str(each.rank) if each.rank <= DEPTH else "more" for each in judged
    )
    kept = [each.score for each in judged if stays(each, filtering)]
    gone = [e.score for e in judged if e.rank and not stays(e, filtering)]
    return {
        "pairs": len(judged),
        "kept": len(kept),
        "dropped": {"rank": len(gone), "blank": counts["0"]},
        "ranks": {name: counts[name] for name in (*names, "more")},
        "score_of_kept": sum(kept),
        "score_of_dropped": sum(gone),
    }


def added_up(accounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the accounts of blocks; sums of scores become means, None of none."""
    total = _sum(accounts)
    for name, number in (
        ("score_of_kept", total["kept"]),
        ("score_of_dropped", total["dropped"]["rank"]),
    ):
        score = total.pop(name)
        total[f"mean_{name}"] = score / number if number else None
    return total


def _sum(accounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: _sum([each[key] for each in accounts])
        if isinstance(value, Mapping)
        else sum(each[key] for each in accounts)
        for key, value in accounts[0].items()
    }


def _pairs(
    source: Source, columns: PairColumns, start: int, stop: int, blank: str
) -> list[tuple[int, Pair]]:
    allow = blank == "drop"
    return [
        (row, columns.pair(values, Place(source, row), allow_blank=allow))
        for row, values in enumerate(source.rows(start, stop), start)
    ]


def _is_blank(pair: Pair) -> bool:
    return not (pair.query.strip() and pair.document.strip())
