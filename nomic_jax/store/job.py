"""Making one store: what its bytes depend on, and the work of each shard.

A finished shard has an entry file beside it, so that a preparation that was stopped
goes on with the shards that have none. Processes and Beam both run these functions.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nomic_jax import storage
from nomic_jax.sources.files import reason_of
from nomic_jax.sources.source import Row, Source
from nomic_jax.store.claim import sweep
from nomic_jax.store.manifest import (
    PREPARATION,
    Preparation,
    Shard,
    check_same,
    read_part,
    shard_name,
)
from nomic_jax.store.record import dtype_of, encode_record
from nomic_jax.store.rules import RowRule, Rule
from nomic_jax.store.shard import is_full, write_shard
from nomic_jax.store.tokenize_range import tokenize_range
from nomic_jax.tokenizer import TextTokenizer

REPORT_EVERY = 1024  # rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A source that becomes a store; any process or machine can make a shard of it."""

    source: Source
    rule: Rule
    tokenizer: str  # the content of its tokenizer.json
    folder: str  # of the store, local or at a URL
    preparation: Preparation


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished shard, and what was counted on the way."""

    shard: Shard
    counts: Mapping[str, int]


def plan(
    source: Source,
    rule: Rule,
    tokenizer: TextTokenizer,
    folder: str,
    *,
    records_per_shard: int | None,
) -> Job:
    """Fix the ranges of a source that become shards, whoever is to make them.

    Raises:
        ValueError: the source is empty.
    """
    rows = len(source)
    if rows == 0:
        raise ValueError(f"source {source.name!r} is empty: give one with rows")
    if isinstance(rule, RowRule):
        records_per_shard = rule.rows_per_range
    elif records_per_shard is None:
        # Enough shards for many processes, and few enough to be open all at once.
        records_per_shard = min(max(-(-rows // 16), 10_000), 1_000_000)
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    preparation = Preparation(
        name=source.name,
        kind=rule.kind,
        rule=dataclasses.asdict(rule),
        texts_per_record=rule.texts_per_record,
        tokenizer_digest=tokenizer.digest,
        vocab_size=tokenizer.size,
        dtype=dtype_of(max(vocabulary.values())),
        source_fingerprint=source.fingerprint,
        input_rows=rows,
        rows_per_shard=records_per_shard,
    )
    return Job(
        source=source,
        rule=rule,
        tokenizer=tokenizer.backend.to_str(),
        folder=folder,
        preparation=preparation,
    )


def begin(job: Job) -> None:
    """Claim the folder for a job, or go on with what the same job left.

    Raises:
        ValueError: it holds shards of another job; what differs is named.
    """
    present = storage.sizes(job.folder)
    found = None
    has_shards = any(name.startswith("shard-") for name in present)
    place = storage.join(job.folder, PREPARATION)
    if has_shards and PREPARATION not in present:
        raise ValueError(
            f"{job.folder} holds shards, but nothing that says of what: delete them, "
            "or give another folder"
        )
    if has_shards:
        try:
            found = read_part(Preparation, storage.read_json(place))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}; delete the folder") from error
        check_same(found, job.preparation, job.folder, finished=False)
    # Before any shard is made by another choice of what was an error so far.
    if not has_shards or found != job.preparation:
        try:
            storage.write_json(place, job.preparation.to_json())
        except OSError as error:
            raise explained(error, job, PREPARATION, {}) from error
    sweep(job.folder)


def finished(job: Job) -> dict[int, Entry]:
    """Return the finished shards of a job by number."""
    present = storage.sizes(job.folder)
    entries = {}
    for index in range(job.preparation.num_shards):
        name = entry_name(job, index)
        if name not in present:
            continue
        try:
            value = storage.read_json(storage.join(job.folder, name))
            shard = read_part(Shard, value["shard"])
            entry = Entry(shard, {key: int(n) for key, n in value["counts"].items()})
            digest, _ = value["preparation"], entry.counts["input_rows"]
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # damaged: the shard is made again
        if (
            digest == job.preparation.digest
            and present.get(shard.file) == shard.bytes
            and present.get(shard.lengths_file, 0) == shard.lengths_bytes
        ):
            entries[index] = entry
    return entries


def make_shard(
    job: Job, index: int, report: Callable[[int], Any] = lambda rows: None
) -> Entry:
    """Tokenise one range of the source and write its shard, then the shard's entry.

    Args:
        job: as `plan` gives it.
        index: of the range.
        report: called with the number of further rows that were read.

    Raises:
        ValueError: a row is not as the rule needs it, or the disk is full.
    """
    step = job.preparation.rows_per_shard
    start, stop = index * step, min((index + 1) * step, job.preparation.input_rows)
    counts = collections.Counter[str]()
    name = shard_name(index, job.preparation.num_shards)
    dtype = job.preparation.dtype
    texts = tokenize_range(
        _reported(job.source, start, stop, report),
        job.rule,
        _tokenizer(job.tokenizer),
        source=job.source,
        start=start,
        counts=counts,
    )
    try:
        shard = write_shard(
            (encode_record(each, dtype) for each in texts),
            job.folder,
            name,
            texts_per_record=job.preparation.texts_per_record,
            dtype=dtype,
        )
        value = {
            "preparation": job.preparation.digest,
            "shard": shard.to_json(),
            "counts": dict(sorted(counts.items())),
        }
        storage.write_json(storage.join(job.folder, entry_name(job, index)), value)
    except OSError as error:
        raise explained(error, job, name, counts) from error
    return Entry(shard, counts)


def entry_name(job: Job, index: int) -> str:
    """Return the name of the file that says that a shard is finished."""
    return shard_name(index, job.preparation.num_shards) + ".json"


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> TextTokenizer:
    return TextTokenizer.from_json(content)


def _reported(
    source: Source, start: int, stop: int, report: Callable[[int], Any]
) -> Iterator[Row]:
    taken = 0
    for taken, row in enumerate(source.rows(start, stop), 1):
        yield row
        if taken % REPORT_EVERY == 0:
            report(REPORT_EVERY)
    report(taken % REPORT_EVERY)
    if taken != stop - start:
        raise ValueError(
            f"source {source.name!r} gave {taken} rows from row {start} on, "
            f"{stop - start} are needed: it was changed; run the command again"
        )


def explained(
    error: OSError, job: Job, name: str, counts: Mapping[str, int]
) -> Exception:
    """Say what could not be written and why; of a full disk, what is needed."""
    if not is_full(error):
        if error.errno is None and not storage.is_remote(job.folder):
            return error  # no file system says so
        place = storage.join(job.folder, name)
        return ValueError(
            f"{place} could not be made: {reason_of(error)}; finished shards are kept"
        )
    width = {"uint16": 2, "uint32": 4}[job.preparation.dtype]
    share = counts.get("input_rows", 0) / job.preparation.input_rows
    needed = int(width * counts.get("tokens", 0) / share) if share else 0
    return ValueError(
        f"{storage.join(job.folder, name)}: no space is left on the disk; the whole "
        f"store needs {f'about {needed:,}' if needed else 'more'} bytes. Finished "
        "shards are kept: make room and run the same command again"
    )
