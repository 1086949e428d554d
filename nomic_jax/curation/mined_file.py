"""A file of pairs with hard negatives, whole or absent, and what it was made by.

FILE   FILE.mining.json, the settings   FILE.parts/, embeddings until it is done
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from nomic_jax import hosts
from nomic_jax.curation.embedded_parts import embed_parts, read_parts
from nomic_jax.curation.mining import Mining, distinct_texts, mined_pairs
from nomic_jax.embedder import Embedder
from nomic_jax.fields import differing_fields
from nomic_jax.folder_copy import written_here
from nomic_jax.sources.jsonl import write_pairs
from nomic_jax.sources.pairs import Pair, PairColumns
from nomic_jax.sources.source import Place, Source
from nomic_jax.storage import (
    check_out,
    exists,
    is_remote,
    join,
    local_path,
    name_of,
    read_json,
    remove,
    sizes,
    write_json,
)

ENDINGS = (".jsonl", ".jsonl.gz")


def check_file(place: str) -> None:
    """Refuse a place that no file of pairs can be written at.

    Raises:
        ValueError: it ends otherwise, or its folder cannot be written.
    """
    if not place.endswith(ENDINGS):
        raise ValueError(f"{place} must end in {' or '.join(ENDINGS)}")
    check_out(_folder_of(place))


def mine_file(
    source: Source,
    columns: PairColumns,
    embedder: Embedder,
    mining: Mining,
    file: str,
    *,
    corpus: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Write the pairs of a source with negatives, unless the same call did before.

    All hosts call it; each embeds a share, the first one chooses and writes.

    Args:
        source: of pairs; negatives that they have are replaced.
        columns: of its texts.
        embedder: with the tasks `query` and `document`, as `with_own_prompts` gives.
        mining: which documents are taken.
        file: .jsonl or .jsonl.gz, local or at a URL, which hosts share.
        corpus: further documents, which answer no query.
        progress: show bars of the tokens embedded.

    Returns:
        Numbers of pairs and of those that were kept.

    Raises:
        ValueError: a row holds no pair, there are too few documents, or the file is
            there and was made otherwise; what differs is named.
    """
    asked = dataclasses.asdict(mining)
    del asked["model"]  # the same model may lie at another place
    settings = {
        "mining": asked,
        "source": source.name,
        "source_fingerprint": source.fingerprint,
        "columns": dataclasses.asdict(columns),
        "corpus": hashlib.blake2b("\0".join(corpus).encode()).hexdigest()[:32],
        "judge": embedder.fingerprint(),
    }
    name, report, parts = name_of(file), f"{file}.mining.json", f"{file}.parts"
    done = hosts.from_first(name, lambda: _done(file, report, parts, settings))
    if done is not None:
        return done
    pairs = _pairs(source, columns, mining)
    texts = distinct_texts(pairs, mining, name=source.name, corpus=corpus)

    def begin() -> None:
        if not exists(report):
            _discard(parts)  # nothing says what they are of
            write_json(report, settings)

    hosts.from_first(name, begin)
    for side, of in (("query", texts.queries), ("document", texts.documents)):
        embed_parts(
            of,
            lambda some, task=side: embedder.encode(some, task=task, progress=progress),
            parts,
            side,
        )

    def write() -> dict[str, Any]:
        queries = read_parts(len(texts.queries), parts, "query")
        documents = read_parts(len(texts.documents), parts, "document")
        found = mined_pairs(pairs, texts, queries, documents, mining, name=source.name)
        counts = {"pairs": len(source), "kept": len(found)}
        with written_here(_folder_of(file), last=name_of(report)) as here:
            write_pairs(here / name, found)
            write_json(here / name_of(report), {**settings, "counts": counts})
        _discard(parts)
        return counts

    return hosts.from_first(name, write)


def _pairs(source: Source, columns: PairColumns, mining: Mining) -> list[Pair]:
    allow = mining.blank == "drop"
    rows = enumerate(source.rows(0, len(source)))
    pairs = (
        columns.pair(row, Place(source, number), allow_blank=allow)
        for number, row in rows
    )
    return [pair for pair in pairs if pair.query.strip() and pair.document.strip()]


def _folder_of(file: str) -> str:
    return file.removesuffix(name_of(file)).rstrip("/") or "."


def _discard(folder: str) -> None:
    for name in sizes(folder):
        remove(join(folder, name))
    if not is_remote(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)


def _done(
    file: str, report: str, parts: str, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the counts of a file that is done, and refuse one of something else.

    Raises:
        ValueError: with each setting that differs.
    """
    if not exists(report):
        if exists(file):
            raise ValueError(
                f"{file} is there, and nothing says how it was made: give another file"
            )
        return None
    found = read_json(report)
    counts = found.pop("counts", None)
    differing = differing_fields(found, json.loads(json.dumps(settings)))
    if differing:
        raise ValueError(
            f"{file} is of another mining: {'; '.join(differing)}; give another file, "
            f"or delete {name_of(report)} and what lies beside it"
        )
    if counts is None or not exists(file):
        return None
    _discard(parts)  # of a run that was stopped at its very end
    return counts
