"""A finished store, read at random: opened in time that grows with its shards alone.

All stores of a process share their open files. When these near the soft limit it is
raised to the hard one, and when that is not enough the files are closed that were not
used for the longest time.
"""

import collections
import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from nomic_jax import storage
from nomic_jax.data.sources.files import cannot_read
from nomic_jax.data.store.manifest import (
    MANIFEST,
    STORES,
    Manifest,
    Shard,
    read_manifest,
    read_names,
)
from nomic_jax.data.store.records import decode_record
from nomic_jax.data.store.shard import local_lengths, open_records, read_lengths

SPARE = 256  # open files left to the rest of the process, or half of them if few


class _Kept:
    def __init__(self, reader: Any):
        self.reader = reader
        self.users = 0  # threads that read from it now
        self.dropped = False


class OpenReaders:
    """Readers by owner and number; one that is in use is never closed."""

    def __init__(self, limit: int | None = None):
        """Take the most that may be open; None: what the system allows."""
        self._limit = limit
        self._kept: collections.OrderedDict[tuple[int, int], _Kept] = (
            collections.OrderedDict()
        )
        self._abandoned: collections.deque[int] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._kept)

    @contextlib.contextmanager
    def lent(
        self,
        owner: int,
        index: int,
        opening: Callable[[], Any],
        opens: contextlib.AbstractContextManager[Any],
    ) -> Iterator[Any]:
        """Lend an owner's reader, opened if it is not open.

        Args:
            owner: number of the store.
            index: of its shard.
            opening: opens the shard; the file may first be fetched.
            opens: the owner's lock, so that no file is fetched by two threads.
        """
        key = owner, index
        kept = self._taken(key)
        if kept is None:
            with opens:
                kept = self._taken(key) or self._added(key, opening())
        try:
            yield kept.reader
        finally:
            with self._lock:
                kept.users -= 1
                if kept.dropped and not kept.users:
                    kept.reader.close()

    def drop(self, owner: int) -> None:
        """Close an owner's readers, those in use when they are given back."""
        with self._lock:
            self._drop(owner)

    def abandon(self, owner: int) -> None:
        """Drop an owner that was collected, soon if the lock is not free.

        The collector may run while this very thread holds the lock.
        """
        self._abandoned.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                while self._abandoned:
                    self._drop(self._abandoned.popleft())
            finally:
                self._lock.release()

    def _drop(self, owner: int) -> None:
        for key in [key for key in list(self._kept) if key[0] == owner]:
            kept = self._kept.pop(key)
            kept.dropped = True
            if not kept.users:
                kept.reader.close()

    def _taken(self, key: tuple[int, int]) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                kept.users += 1
                self._kept.move_to_end(key)
            return kept

    def _added(self, key: tuple[int, int], reader: Any) -> _Kept:
        kept = _Kept(reader)
        kept.users = 1
        with self._lock:
            while self._abandoned:
                self._drop(self._abandoned.popleft())
            self._kept[key] = kept
            if self._limit is None:
                self._limit = allowed()
            idle = [k for k, other in self._kept.items() if not other.users]
            for old in idle[: max(len(self._kept) - self._limit, 0)]:
                self._kept.pop(old).reader.close()
        return kept


def allowed() -> int:
    """Raise the soft limit of open files to the hard one; return how many are ours."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Nobody is told that the hard limit is endless: some systems then refuse it.
    wanted = 2**16 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        soft = wanted
    return max(soft - SPARE, soft // 2)


READERS = OpenReaders()  # of this process


_numbers = itertools.count()  # of the stores of this process


class Store:
    """The records of one source, as token ids.

    Shards are opened when a record of theirs is first read, and again in a process to
    which the store is sent. Remote ones are fetched whole then, once for a machine.
    Where more shards are read than files may be open, some are closed in between.
    """

    def __init__(self, url: str, manifest: Manifest):
        """Take a manifest as it is; `open` checks the files too."""
        self.url = url
        self.manifest = manifest
        self._ends = np.cumsum([shard.records for shard in manifest.shards])
        self._number = next(_numbers)
        weakref.finalize(self, READERS.abandon, self._number).atexit = False
        self._lengths: dict[int, Path] = {}
        self._lock = threading.Lock()
        rule = manifest.rule
        if manifest.kind == "pairs":
            further = manifest.texts_per_record - 1
            self._most = (rule["query_length"], *[rule["document_length"]] * further)
        else:
            self._most = (rule["row_length"],)

    @classmethod
    def open(cls, url: str | Path) -> "Store":
        """Open a store, local or at a URL.

        Raises:
            ValueError: there is none, its preparation is unfinished, it is of another
                format, or a file is missing or has another size, or (if local) another
                number of records, than the manifest says.
        """
        url = str(url)
        manifest = read_manifest(url)
        try:
            found = storage.sizes(url)
        except OSError as error:
            raise cannot_read(url, error) from error
        for shard in manifest.shards:
            for file, expected in _files(shard):
                if file not in found:
                    raise ValueError(
                        f"{storage.join(url, file)} is missing, {MANIFEST} names it: "
                        "copy it here, or prepare the store again in an empty folder"
                    )
                if found[file] != expected:
                    raise ValueError(
                        f"{storage.join(url, file)} has {found[file]} bytes, "
                        f"{MANIFEST} says {expected}: it was cut or changed; copy it "
                        "again, or prepare the store again in an empty folder"
                    )
        store = cls(url, manifest)
        if not storage.is_remote(url):
            store._check_counts()
        return store

    @property
    def name(self) -> str:
        """The source's name."""
        return self.manifest.name

    def __len__(self) -> int:
        """Return the number of records."""
        return self.manifest.records

    def __getstate__(self) -> tuple[str, Manifest]:
        """Send what is needed to open the files again."""
        return self.url, self.manifest

    def __setstate__(self, state: tuple[str, Manifest]) -> None:
        """Start with no file open."""
        self.__init__(*state)

    def close(self) -> None:
        """Close the files; reading opens them again."""
        with self._lock:
            READERS.drop(self._number)
            self._lengths.clear()

    def lengths(self, records: Int[np.ndarray, "n"]) -> Int32[np.ndarray, "n C"]:
        """Return the tokens of each text of pairs, without reading the texts.

        Raises:
            ValueError: the store holds rows, or a record is out of range.
        """
        if self.manifest.kind != "pairs":
            raise ValueError(f"{self.url} holds rows; only pairs have lengths of texts")
        found = np.empty((len(records), self.manifest.texts_per_record), np.int32)
        for index, places, local in self._by_shard(records):
            found[places] = read_lengths(
                self._local_lengths(index),
                self.manifest.shards[index],
                local,
                texts_per_record=self.manifest.texts_per_record,
            )
        return found

    def read(self, records: Int[np.ndarray, "n"]) -> list[list[np.ndarray]]:
        """Return the token ids of each record's texts, in the order asked.

        Args:
            records: numbers from 0; a number may stand there twice.

        Returns:
            Of a pair [query, document, negatives ...], of a row the pieces of documents
            in it; arrays of the stored dtype that cannot be written to.

        Raises:
            ValueError: a record is out of range, or not as the manifest says.
        """
        found: list[list[np.ndarray]] = [[]] * len(records)
        for index, places, local in self._by_shard(records):
            shard = self.manifest.shards[index]
            opening = functools.partial(open_records, self.url, shard)
            with READERS.lent(self._number, index, opening, self._lock) as reader:
                for place, record in zip(places.tolist(), local.tolist(), strict=True):
                    try:
                        # One at a time: handing a few to its threads takes longer.
                        (content,) = reader.read(record, record + 1)
                        texts = decode_record(content, self.manifest.dtype)
                        self._check(texts)
                    except (RuntimeError, ValueError) as error:
                        file = storage.join(self.url, shard.file)
                        raise ValueError(
                            f"{file}: record {record}: {error}; prepare the store again"
                        ) from error
                    found[place] = texts
        return found

    def check_tokenizer(self, digest: str) -> None:
        """Refuse a tokenizer that gives other ids than the store's.

        Args:
            digest: as `TextTokenizer.digest` gives it.

        Raises:
            ValueError: it is another; both are named.
        """
        if digest != self.manifest.tokenizer_digest:
            raise ValueError(
                f"{self.url} was prepared with tokenizer "
                f"{self.manifest.tokenizer_digest}, this one is {digest}: use the "
                "tokenizer that is next to the stores, or prepare them again"
            )

    def verify(self) -> None:
        """Compare every file's content with the manifest, where it is.

        Of a remote store all files are read, not what was fetched of them before.

        Raises:
            ValueError: a file has another checksum or number of records.
        """
        for shard in self.manifest.shards:
            for file, checksum in (
                (shard.file, shard.checksum),
                (shard.lengths_file, shard.lengths_checksum),
            ):
                if not checksum:
                    continue
                url = storage.join(self.url, file)
                found = storage.checksum_of(url)
                if found != checksum:
                    raise ValueError(
                        f"{url} has checksum {found}, {MANIFEST} says {checksum}: it "
                        "was changed; prepare the store again in an empty folder"
                    )
        if not storage.is_remote(self.url):
            self._check_counts()

    def _by_shard(
        self, records: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield shards, which of the records asked are theirs, and their numbers."""
        if not len(records):
            return
        order = np.argsort(records, kind="stable")
        ordered = records[order]
        if ordered[0] < 0 or ordered[-1] >= len(self):
            wrong = ordered[0] if ordered[0] < 0 else ordered[-1]
            raise ValueError(
                f"{self.url} has no record {wrong}: it has {len(self)}, from 0"
            )
        shards = np.searchsorted(self._ends, ordered, side="right")
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(records)]
        for begin, end in zip(cuts, cuts[1:], strict=False):
            index = int(shards[begin])
            first = self._ends[index] - self.manifest.shards[index].records
            yield index, order[begin:end], ordered[begin:end] - first

    def _check(self, texts: list[np.ndarray]) -> None:
        if self.manifest.kind == "rows":
            lengths = (sum(map(len, texts)),)
            fits = lengths == self._most
        else:
            lengths = tuple(map(len, texts))
            fits = len(texts) == len(self._most) and all(
                map(int.__le__, lengths, self._most)
            )
        if not fits:
            raise ValueError(
                f"it has {lengths} tokens, {MANIFEST} allows {self._most}"
                + ("" if self.manifest.kind == "pairs" else " and no fewer")
            )

    def _check_counts(self) -> None:
        for shard in self.manifest.shards:
            open_records(self.url, shard).close()
            if shard.lengths_bytes:
                local_lengths(
                    self.url, shard, texts_per_record=self.manifest.texts_per_record
                )

    def _local_lengths(self, index: int) -> Path:
        if index not in self._lengths:
            with self._lock:
                if index not in self._lengths:
                    shard = self.manifest.shards[index]
                    self._lengths[index] = local_lengths(
                        self.url, shard, texts_per_record=self.manifest.texts_per_record
                    )
        return self._lengths[index]


def open_stores(url: str | Path) -> dict[str, Store]:
    """Open the stores of a collection, by name in the order they were given.

    Raises:
        ValueError: there is no collection, or one of its stores is not as it should be.
    """
    try:
        names = read_names(url)
    except FileNotFoundError:
        raise ValueError(
            f"{url} holds no finished collection of stores: there is no {STORES}; "
            "prepare it, or run the same prepare command again"
        ) from None
    return {name: Store.open(storage.join(url, name)) for name in names}


def _files(shard: Shard) -> list[tuple[str, int]]:
    lengths = [(shard.lengths_file, shard.lengths_bytes)] if shard.lengths_bytes else []
    return [(shard.file, shard.bytes), *lengths]
