"""Filtered pairs on disk: a shard a block, written whole, and a report at the end.

    OUT/SOURCE/   filtering.json   shard-00000.jsonl.gz and its block-00000.json ...
                  counts.json   report.json

A block whose account `block-*.json` is there is not judged again, so the same command
resumes. The folder of a source is one of shards, as `nomic-jax prepare` reads them.
"""

import dataclasses
import gzip
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nomic_jax import hosts
from nomic_jax.curation.consistency import (
    Filtering,
    Judged,
    account,
    added_up,
    blocks,
    judge,
    stays,
)
from nomic_jax.curation.own_prompts import search_prompts, with_own_prompts
from nomic_jax.embedder import Embedder
from nomic_jax.fields import differing_fields
from nomic_jax.folder_copy import written_here
from nomic_jax.sources.pairs import PairColumns
from nomic_jax.sources.source import Source
from nomic_jax.storage import check_out, exists, join, read_json, sizes, write_json
from nomic_jax.whole_file import whole_file

SETTINGS, COUNTS, REPORT = "filtering.json", "counts.json", "report.json"
POLL_SECONDS = 1.0


class Candidates(NamedTuple):
    """A source of pairs, the columns they stand in, and prefixes of its own, if any."""

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
        hosts.from_first(
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
    return hosts.from_first(
        "report",
        lambda: [
            _finished([block for block in work if block.folder == str(folder)])
            for folder in folders
        ],
    )


def _claim(folder: str | Path, settings: dict[str, Any]) -> None:
    """Say what a folder is of, or refuse one of something else.

    Raises:
        ValueError: with each setting that differs, or what lies there unexplained.
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
