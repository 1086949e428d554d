"""From sources to token stores: once, over several processes, resumed after a kill.

What a store's bytes depend on is written first. A finished shard has an entry file
next to it, so that a preparation that was stopped goes on with the shards that have
none. Processes and Beam run the same functions. The manifest is written last, when
every shard is there.
"""

import collections
import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nomic_jax import storage
from nomic_jax.data.sources.files import cannot_read, reason_of
from nomic_jax.data.sources.source import Row, Source, check_name
from nomic_jax.data.store.manifest import (
    MANIFEST,
    PREPARATION,
    STORES,
    Manifest,
    Preparation,
    Shard,
    check_same,
    read_part,
    shard_name,
    write_manifest,
    write_names,
)
from nomic_jax.data.store.records import RowRule, Rule, dtype_of, encode_record
from nomic_jax.data.store.shard import is_full, write_shard
from nomic_jax.data.store.store import Store
from nomic_jax.data.store.tokenize import tokenize_range
from nomic_jax.data.store.workers import Report, claimed, run_tasks, sweep
from nomic_jax.data.tokenizer import TextTokenizer

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
        f"{storage.join(job.folder, name)}: no space is left on disk; the whole "
        f"store needs {f'about {needed:,}' if needed else 'more'} bytes. Finished "
        "shards are kept: make room and run the same command again"
    )


def finish(job: Job, entries: Mapping[int, Entry]) -> Manifest:
    """Write the manifest of a job whose shards are all made, and drop the entries.

    Raises:
        ValueError: a shard is not there, there is no record, or all are the same; the
            last two leave nothing behind.
    """
    wanted = job.preparation.num_shards
    if missing := wanted - len(entries):
        raise ValueError(
            f"{job.folder}: {missing} of {wanted} shards were made where this process "
            "does not see them: give --out as a URL that all machines reach"
        )
    shards = tuple(entries[i].shard for i in range(wanted))
    present = storage.sizes(job.folder)
    for shard in shards:
        if present.get(shard.file) != shard.bytes:
            raise ValueError(
                f"{storage.join(job.folder, shard.file)} was written, but is not "
                "there: a place that one process alone sees needs workers=1"
            )
    counts = collections.Counter[str]()
    for entry in entries.values():
        counts.update(entry.counts)
    manifest = Manifest(
        **{
            field.name: getattr(job.preparation, field.name)
            for field in dataclasses.fields(Preparation)
        },
        records=sum(shard.records for shard in shards),
        counts=dict(sorted(counts.items())),
        shards=shards,
    )
    problem = _problem(manifest)
    if problem:
        for shard in shards:
            storage.remove(storage.join(job.folder, shard.file))
            storage.remove(storage.join(job.folder, shard.lengths_file))
        forget(job)
        raise ValueError(problem)
    try:
        write_manifest(job.folder, manifest)
    except OSError as error:
        raise explained(error, job, MANIFEST, counts) from error
    forget(job)
    return manifest


def forget(job: Job) -> None:
    """Delete the entries and the note of a preparation that has ended."""
    present = storage.sizes(job.folder)
    names = [entry_name(job, index) for index in range(job.preparation.num_shards)]
    for name in (*names, PREPARATION):
        if name in present:
            storage.remove(storage.join(job.folder, name))


def _problem(manifest: Manifest) -> str | None:
    name, counts = manifest.name, manifest.counts
    blank = counts.get("dropped_blank", 0)
    if manifest.records == 0 and blank == counts["input_rows"]:
        return f"source {name!r}: all {blank} texts are blank; is it the right column?"
    if manifest.records == 0 and manifest.kind == "pairs":
        return (
            f"source {name!r}: all {counts['dropped_records']} pairs have fewer than "
            f"{manifest.rule['num_negatives']} negatives in column "
            f"{manifest.rule['columns']['negatives']!r} and were dropped; lower "
            "num_negatives, or name another column"
        )
    if manifest.records == 0:
        return (
            f"source {name!r}: {counts['lost_tokens']} tokens in "
            f"{len(manifest.shards)} ranges fill no row of "
            f"{manifest.rule['row_length']}; give more text, shorter rows or longer "
            "ranges"
        )
    filled = [shard for shard in manifest.shards if shard.records]
    same = all(shard.distinct == 1 for shard in filled)
    if manifest.records > 1 and same and len({shard.first for shard in filled}) == 1:
        part = "document" if manifest.kind == "pairs" else "row"
        return (
            f"source {name!r}: all {manifest.records} records have one and the same "
            f"{part}, so there is nothing to tell apart; leave it out"
        )
    return None


TOKENIZER = "tokenizer.json"
_RESERVED = (TOKENIZER, "tokenizer_config.json", STORES, MANIFEST, PREPARATION)


def prepare_store(
    source: Source,
    rule: Rule,
    tokenizer: TextTokenizer | str | Path,
    out_url: str | Path,
    *,
    workers: int = 1,
    records_per_shard: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Tokenise a source into a store, or go on where the same call was stopped.

    The store's bytes do not depend on `workers`, nor on how often it was stopped.

    Args:
        source: rows of text.
        rule: how they become records.
        tokenizer: or the folder that holds one.
        out_url: the store's folder, local or at a URL.
        workers: processes.
        records_per_shard: rows of a source of pairs that become one shard; None:
            about a sixteenth of them. Rows of documents have ranges in their rule.
        progress: show rate and time left.

    Returns:
        The manifest. That of a store which is there already, once it was verified.

    Raises:
        ValueError: a row is not as the rule needs it, the source is empty or always the
            same, the disk is full, or the folder holds something else.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    job = planned(source, rule, tokenizer, out_url, records_per_shard=records_per_shard)
    if done := already_there(job):
        return done
    with claimed(job.folder):
        if done := already_there(job):  # since it was looked for
            return done
        begin(job)
        entries = finished(job)
        missing = [i for i in range(job.preparation.num_shards) if i not in entries]
        making = _entries(job, entries, missing, workers, progress)
        with contextlib.closing(making) as made:
            for index, entry in made:
                entries[index] = entry
        return finish(job, entries)


def prepare_collection(
    named_sources: Sequence[tuple[Source, Rule]],
    tokenizer: TextTokenizer | str | Path,
    out_url: str | Path,
    *,
    make_store: Callable[..., Manifest] = prepare_store,
    **options: Any,
) -> dict[str, Manifest]:
    """Make a store of each source, in folders by their names, with one tokenizer.

    Stores that the collection has already stay in it, before the new ones.

    Args:
        named_sources: each with the rule of its records.
        tokenizer: of all; it is written next to the stores.
        out_url: the collection's folder, local or at a URL.
        make_store: makes each, of a source, its rule, the tokenizer and a folder:
            `prepare_store`, or `prepare_on_beam`.
        options: of `make_store`.

    Returns:
        The manifests of the stores made now, by name.

    Raises:
        ValueError: as `make_store`; or two sources share a name, a name is not a name
            of a folder, or the collection has another tokenizer.
    """
    if not named_sources:
        raise ValueError("no source is given; a collection needs at least one")
    names = [source.name for source, _ in named_sources]
    for name in names:
        check_name(name)
        if name in _RESERVED:
            raise ValueError(
                f"source name {name!r} is that of a file next to the stores: give "
                "another name"
            )
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} sources are named {name!r}: each needs a name "
                "of its own; prepare one after another, each with its `name`"
            )
    storage.check_out(out_url)
    tokenizer = _loaded(tokenizer)
    _check_tokenizer(tokenizer, out_url)
    manifests = {
        source.name: make_store(
            source, rule, tokenizer, storage.join(out_url, source.name), **options
        )
        for source, rule in named_sources
    }
    try:
        write_tokenizer(tokenizer, out_url)
        write_names(out_url, names, tokenizer_digest=tokenizer.digest)
    except OSError as error:
        if not is_full(error):
            raise
        raise ValueError(
            f"{out_url}: no space is left on disk for {TOKENIZER} and {STORES}; "
            "the stores are kept: make room and run the same command again"
        ) from error
    return manifests


def planned(
    source: Source,
    rule: Rule,
    tokenizer: TextTokenizer | str | Path,
    out_url: str | Path,
    *,
    records_per_shard: int | None,
) -> Job:
    """Plan a store's shards from what a user gives.

    Raises:
        ValueError: the source or the tokenizer is missing.
    """
    if records_per_shard is not None and records_per_shard < 1:
        raise ValueError(f"records_per_shard={records_per_shard} must be at least 1")
    return plan(
        source,
        rule,
        _loaded(tokenizer),
        str(out_url),
        records_per_shard=records_per_shard,
    )


def already_there(job: Job) -> Manifest | None:
    """Verify the store that a job is to make, if it is finished.

    Raises:
        ValueError: it is another one, or a file of it was changed.
    """
    try:
        present = storage.sizes(job.folder)
    except OSError as error:
        storage.check_out(job.folder)
        raise cannot_read(job.folder, error) from error
    if MANIFEST not in present:
        return None
    store = Store.open(job.folder)
    check_same(store.manifest.preparation, job.preparation, job.folder, finished=True)
    store.verify()
    forget(job)
    return store.manifest


def _entries(
    job: Job, done: dict[int, Entry], missing: list[int], workers: int, progress: bool
) -> Generator[tuple[int, Entry], None, None]:
    import tqdm

    read = sum(entry.counts["input_rows"] for entry in done.values())
    tokens = 0
    with (
        # Called last, when the processes have stopped.
        contextlib.ExitStack() as stack,
        tqdm.tqdm(
            desc=job.preparation.name,
            total=job.preparation.input_rows,
            initial=read,
            unit=" rows",
            disable=not progress,
        ) as bar,
    ):
        stack.callback(sweep, job.folder)
        results = run_tasks(
            functools.partial(_made, job), missing, workers=workers, report=bar.update
        )
        with contextlib.closing(results):
            for index, entry in results:
                tokens += entry.counts["tokens"]
                bar.set_postfix_str(f"{tokens:,} tokens")
                yield index, entry


def _made(job: Job, index: int, report: Report) -> tuple[int, Entry]:
    return index, make_shard(job, index, report)


def _loaded(tokenizer: TextTokenizer | str | Path) -> TextTokenizer:
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    return TextTokenizer.from_folder(Path(tokenizer))


def write_tokenizer(tokenizer: TextTokenizer, out_url: str | Path) -> None:
    """Write a tokenizer's files into a folder, local or at a URL."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            storage.write_bytes(storage.join(out_url, path.name), path.read_bytes())


def _check_tokenizer(tokenizer: TextTokenizer, folder: str | Path) -> None:
    place = storage.join(folder, TOKENIZER)
    if not storage.exists(place):
        return

    there = TextTokenizer.from_json(storage.read_bytes(place).decode(), place=place)
    if there.digest != tokenizer.digest:
        raise ValueError(
            f"{place} has digest {there.digest}, the tokenizer given {tokenizer.digest}"
            ": give the same, or another folder"
        )
