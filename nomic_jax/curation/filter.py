"""The consistency filter: a pair stays if its document is found by its query.

Nomic Embed (arXiv:2402.01613, section 3.2) embeds blocks of a million pairs with an
existing model, and keeps those whose document is among the two nearest to the query in
the block; of 470 million pairs 235 million stayed. The last block takes the rest, as in
contrastors: a small block has few rivals, and would let most pairs through.

    OUT/SOURCE/   filtering.json   shard-00000.jsonl.gz and its block-00000.json ...
                  counts.json   report.json

A block whose `block-*.json` exists is not judged again, so the same command resumes. A
source's folder has the layout of Nomic's shards, which `nomic-jax prepare` reads.
"""

import collections
import dataclasses
import gzip
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from nomic_jax.config import differing_fields
from nomic_jax.curation.pairs import StagePairs, search_prompts, with_own_prompts
from nomic_jax.data.sources.pairs import Pair, PairColumns
from nomic_jax.data.sources.source import Place, Source
from nomic_jax.distributed import hosts
from nomic_jax.inference.embedder import Embedder
from nomic_jax.inference.search import top_k
from nomic_jax.storage import (
    check_out,
    exists,
    join,
    read_json,
    sizes,
    whole_file,
    write_json,
    written_here,
)

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
    best, found = top_k(queries, documents, k=min(depth + most, len(documents)))
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


SETTINGS, COUNTS, REPORT = "filtering.json", "counts.json", "report.json"
POLL_SECONDS = 1.0


class Candidates(NamedTuple):
    """A source of pairs, its columns, and its own prefixes, if any."""

    source: Source
    columns: PairColumns
    prefixes: tuple[str, str] | None = None  # of queries, documents; None: the filter's


class _Block(NamedTuple):
    """A range of a source's rows, and the folder its pairs go to."""

    source: Source
    columns: PairColumns
    judge: Embedder
    folder: str
    number: int
    start: int
    stop: int

    @property
    def shard(self) -> str:
        return f"shard-{self.number:05d}.jsonl.gz"

    @property
    def account(self) -> str:
        return f"block-{self.number:05d}.json"


def filter_source(
    source: Source,
    columns: PairColumns,
    embedder: Embedder,
    filtering: Filtering,
    folder: str | Path,
    *,
    prefixes: tuple[str, str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the pairs of a source that stay, and return the report.

    Of several hosts, which all call it and share the folder, each judges its blocks.

    Args:
        source: any source of pairs, also one in memory.
        columns: of its texts.
        embedder: the judge; its own prompts are not used.
        filtering: what is asked of a pair.
        folder: of the source, local or at a URL.
        prefixes: of its queries and documents; None: those of `filtering`.
        progress: show bars, and a line a block with the rate and the time left.

    Returns:
        The numbers of pairs, kept and dropped by reason, of ranks, and mean scores.

    Raises:
        ValueError: a row holds no pair, or the folder holds another filtering; what
            differs is named.
    """
    candidates = [Candidates(source, columns, prefixes)]
    (report,) = filter_sources(
        candidates, embedder, filtering, [folder], progress=progress
    )
    return report


def filter_sources(
    candidates: Sequence[Candidates],
    embedder: Embedder,
    filtering: Filtering,
    folders: Sequence[str | Path],
    *,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Filter several sources, each into its folder; see `filter_source`.

    Every folder is looked at before any block is judged.

    Raises:
        ValueError: as `filter_source` does; or a source has no more pairs than the
            nearest documents among which a pair's own must be.
    """
    for source, *_ in candidates:
        if len(source) <= filtering.k:
            raise ValueError(
                f"{source.name}: k={filtering.k} of {len(source)} pairs, so none can "
                f"fail; k must be below {len(source)}"
            )
    work = list[_Block]()
    own_prompts = search_prompts(embedder.config)
    for (source, columns, prefixes), folder in zip(candidates, folders, strict=True):
        check_out(folder)
        query, document = prefixes or (
            given if given is not None else own
            for given, own in zip(
                (filtering.query_prefix, filtering.document_prefix),
                own_prompts,
                strict=True,
            )
        )
        judging = with_own_prompts(
            embedder, query, document, max_length=filtering.max_length
        )
        asked = dataclasses.asdict(filtering)
        del asked["model"]  # the same model may lie at another place
        settings = {
            **asked,
            "query_prefix": query,
            "document_prefix": document,
            "columns": dataclasses.asdict(columns),
            "source": source.name,
            "source_fingerprint": source.fingerprint,
            "judge": judging.fingerprint(),
        }
        hosts.broadcast_from_host0(
            f"folder of {source.name}", lambda f=folder, s=settings: _claim(f, s)
        )
        work += [
            _Block(source, columns, judging, str(folder), number, *rows)
            for number, rows in enumerate(blocks(len(source), filtering.block))
        ]
    own = work[hosts.number() :: hosts.count()]
    left = [block for block in own if not exists(join(block.folder, block.account))]
    began, done, total = time.monotonic(), 0, sum(b.stop - b.start for b in left)
    for block in left:
        judged = list(
            judge(
                block.source,
                block.columns,
                block.start,
                block.stop,
                block.judge,
                filtering,
                progress=progress,
            )
        )
        counts = account(judged, filtering)
        _write_block(block, judged, filtering, counts)
        done += block.stop - block.start
        if progress:
            rate = done / (time.monotonic() - began)
            print(
                f"{block.source.name}, rows {block.start:,} to {block.stop - 1:,}: "
                f"kept {counts['kept']:,} of {counts['pairs']:,}; {rate:,.0f} pairs/s, "
                f"{(total - done) / rate:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
    return hosts.broadcast_from_host0(
        "report",
        lambda: [
            _finished([block for block in work if block.folder == str(folder)])
            for folder in folders
        ],
    )


def _claim(folder: str | Path, settings: dict[str, Any]) -> None:
    """Say what a folder is of, or refuse one of something else.

    Raises:
        ValueError: with each setting that differs, or what is there unexplained.
    """
    place = join(folder, SETTINGS)
    if exists(place):
        differing = differing_fields(read_json(place), json.loads(json.dumps(settings)))
        if not any(name.startswith("block-") for name in sizes(folder)):
            write_json(place, settings)  # of a try that came to nothing
        elif differing:
            raise ValueError(
                f"{folder} holds another filtering: {'; '.join(differing)}; give "
                "another folder, or delete this one"
            )
        return
    if any(name.startswith("shard-") for name in sizes(folder)):
        raise ValueError(
            f"{folder} holds shards, but nothing that says of what: give another folder"
        )
    write_json(place, settings)


def _write_block(
    block: _Block,
    judged: Iterable[Judged],
    filtering: Filtering,
    counts: dict[str, Any],
) -> None:
    """Write what stays of a block, and then its account."""
    with written_here(block.folder, last=block.account) as here:
        here.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(here / block.shard) as raw,
            # Without a name and a time in its header, the bytes depend on the text.
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
        ):
            for each in judged:
                if stays(each, filtering):
                    line = json.dumps(_record(each), ensure_ascii=False)
                    file.write(line.encode() + b"\n")
        write_json(here / block.account, counts)


def _record(judged: Judged) -> dict[str, Any]:
    pair = judged.pair
    record = {"query": pair.query, "document": pair.document}
    negatives = [text for text in pair.negatives if text.strip()]
    return {
        **record,
        **({"negatives": negatives} if negatives else {}),
        "id": judged.row,
        "score": round(judged.score, 6),
        "rank": judged.rank,
    }


def _finished(work: Sequence[_Block]) -> dict[str, Any]:
    """Wait until all hosts have written a source's blocks, and add up."""
    folder, accounts = work[0].folder, []
    for block in work:
        while not exists(join(folder, block.account)):
            time.sleep(POLL_SECONDS)
        accounts.append(read_json(join(folder, block.account)))
    kept = {
        block.shard: each["kept"] for block, each in zip(work, accounts, strict=True)
    }
    report = {**added_up(accounts), "blocks": len(work)}
    write_json(join(folder, COUNTS), kept)
    settings = read_json(join(folder, SETTINGS))
    write_json(join(folder, REPORT), {**report, "filtering": settings})
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterStage:
    """Keep the pairs whose document is found by its query, and tokenise them."""

    name: str
    data: StagePairs
    filtering: Filtering
