"""Sources to token stores: once, over several processes, and on after a kill."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from nomic_jax import storage
from nomic_jax.sources.files import cannot_read
from nomic_jax.sources.source import Source, check_name
from nomic_jax.store.claim import claimed, sweep
from nomic_jax.store.collection import STORES, write_names
from nomic_jax.store.finish import finish, forget
from nomic_jax.store.job import Entry, Job, begin, finished, make_shard, plan
from nomic_jax.store.manifest import MANIFEST, PREPARATION, Manifest, check_same
from nomic_jax.store.processes import Report, run_tasks
from nomic_jax.store.rules import Rule
from nomic_jax.store.shard import is_full
from nomic_jax.store.store import Store
from nomic_jax.tokenizer import TextTokenizer

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
        tokenizer: of all; it is written beside the stores.
        out_url: the collection's folder, local or at a URL.
        make_store: makes each, of a source, its rule, the tokenizer and a folder:
            `prepare_store`, or `prepare_on_beam`.
        options: of `make_store`.

    Returns:
        The manifests of the stores made now, by name.

    Raises:
        ValueError: as `make_store`; or two sources share a name, a name is no name
            of a folder, or the collection has another tokenizer.
    """
    if not named_sources:
        raise ValueError("no source is given; a collection needs at least one")
    names = [source.name for source, _ in named_sources]
    for name in names:
        check_name(name)
        if name in _RESERVED:
            raise ValueError(
                f"source name {name!r} is that of a file beside the stores: give "
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
            f"{out_url}: no space is left on the disk for {TOKENIZER} and {STORES}; "
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
