"""A finished store, read at random: opened in time that grows with its shards alone."""

import functools
import itertools
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from nomic_jax import storage
from nomic_jax.sources.files import cannot_read
from nomic_jax.store.collection import STORES, read_names
from nomic_jax.store.manifest import MANIFEST, Manifest, Shard, read_manifest
from nomic_jax.store.open_readers import READERS
from nomic_jax.store.record import decode_record
from nomic_jax.store.shard import local_lengths, open_records, read_lengths

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
                        "anew, or prepare the store again in an empty folder"
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
                "tokenizer that lies beside the stores, or prepare them again"
            )

    def verify(self) -> None:
        """Compare every file's content with the manifest, where it lies.

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
