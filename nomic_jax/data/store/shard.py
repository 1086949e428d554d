"""One shard: records in an ArrayRecord file, and the lengths of their texts next to it.

Records are grouped by 64, uncompressed: one of a local file is read in 7 microseconds,
and the open file's index takes a fifth of a byte a record.
"""

import array
import contextlib
import errno
import hashlib
import importlib
import io
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from nomic_jax import storage
from nomic_jax.data.sources.files import cannot_read
from nomic_jax.data.store.manifest import MANIFEST, Shard
from nomic_jax.data.store.records import Dtype, lengths_in, text_bytes
from nomic_jax.storage import partial_name

WRITER_OPTIONS = "group_size:64,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
READER_BUFFER = 2**14  # bytes; larger ones are filled in vain, a group is as large
_AGAIN = "prepare the store again in an empty folder"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_shard(
    records: Iterable[bytes],
    folder: str,
    name: str,
    *,
    texts_per_record: int,
    dtype: Dtype,
) -> Shard:
    """Write records, and if each has as many texts, the texts' lengths.

    The files take their places when they are complete, that of the records last.

    Args:
        records: as `encode_record` gives them, at least the header of each valid.
        folder: local or at a URL.
        name: what the files' names begin with.
        texts_per_record: of pairs; 0 for rows, which have no file of lengths.
        dtype: of the ids in the records.

    Raises:
        OSError: the disk is full (`is_full`), or the folder cannot be written.
        ValueError: a record has another number of texts.
    """
    lengths = array.array("i")
    seen: set[bytes] = set()
    first, count = b"", 0
    with _partial(folder, f"{name}.array_record") as path:
        with _array_record_writer(path) as writer:
            for count, record in enumerate(records, 1):
                writer.write(record)
                content = record
                if texts_per_record:
                    found = lengths_in(record)
                    if len(found) != texts_per_record:
                        raise ValueError(
                            f"{name}: record {count - 1} has {len(found)} texts, "
                            f"the shard's have {texts_per_record}"
                        )
                    lengths.extend(found)
                    # Equal documents are what makes negatives of a batch false.
                    content = text_bytes(record, found, 1, dtype)
                seen.add(hashlib.blake2b(content, digest_size=8).digest())
                if count == 1:
                    first = content
        table = _npy(lengths, texts_per_record) if texts_per_record else b""
        if table:
            storage.write_bytes(storage.join(folder, f"{name}.lengths.npy"), table)
        shard = Shard(
            file=f"{name}.array_record",
            records=count,
            bytes=path.stat().st_size,
            checksum=storage.checksum_of(path),
            lengths_bytes=len(table),
            lengths_checksum=_digest(table) if table else "",
            distinct=len(seen),
            first=_digest(first),
        )
        storage.publish(path, storage.join(folder, shard.file))
    return shard


def open_records(folder: str, shard: Shard) -> Any:
    """Open a shard's ArrayRecord file for random access; close it after use.

    A remote one is fetched whole, once for a machine.

    Raises:
        ValueError: it cannot be opened, or has another number of records.
    """
    url = storage.join(folder, shard.file)
    path = storage.local_copy(url, checksum=shard.checksum)
    try:
        reader = _array_record().ArrayRecordReader(
            str(path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER
        )
        if not reader.ok():
            reader.close()  # which raises what is wrong
    except RuntimeError as error:
        raise ValueError(
            f"{url} cannot be opened: {error}; if it is damaged, prepare the store "
            "again in an empty folder; if too many files are open, raise `ulimit -n`"
        ) from error
    found = reader.num_records()
    if found != shard.records:
        reader.close()
        raise _other_count(url, found, shard)
    return reader


def local_lengths(folder: str, shard: Shard, *, texts_per_record: int) -> Path:
    """Return the local file of a shard's lengths, int32 [records, texts_per_record].

    Raises:
        ValueError: it is no such table, or has another number of records or texts.
    """
    url = storage.join(folder, shard.lengths_file)
    path = storage.local_copy(url, checksum=shard.lengths_checksum)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
            end = file.tell() + 4 * math.prod(shape)
    except OSError as error:
        raise cannot_read(url, error) from error
    except ValueError as error:
        raise ValueError(
            f"{url} is not a table of lengths: {error}; {_AGAIN}"
        ) from error
    if len(shape) != 2 or by_column or dtype != "<i4" or end != shard.lengths_bytes:
        raise ValueError(
            f"{url} is not a table of lengths: it holds {dtype} {shape}, int32 "
            f"[records, texts] are needed; {_AGAIN}"
        )
    if shape[0] != shard.records:
        raise _other_count(url, shape[0], shard)
    if shape[1] != texts_per_record:
        raise ValueError(
            f"{url} has lengths of {shape[1]} texts, {MANIFEST} says "
            f"{texts_per_record}; {_AGAIN}"
        )
    return path


def read_lengths(
    path: Path, shard: Shard, records: Int[np.ndarray, "n"], *, texts_per_record: int
) -> Int32[np.ndarray, "n C"]:
    """Read rows of a shard's table of lengths.

    Args:
        path: as `local_lengths` gives it.
        shard: of the table.
        records: numbers in the shard, from 0.
        texts_per_record: columns of the table.

    Raises:
        ValueError: the file is gone or was cut, or too many files are open.
    """
    width = np.dtype(np.int32).itemsize * texts_per_record
    begin = shard.lengths_bytes - shard.records * width  # after the header
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            # Not mapped into memory: the kernel then maps, and counts as this
            # process's, a megabyte around every record.
            data = [os.pread(file, width, begin + i * width) for i in records.tolist()]
        finally:
            os.close(file)
    except OSError as error:
        raise cannot_read(str(path), error) from error
    content = b"".join(data)
    if len(content) != width * len(records):
        raise ValueError(f"{path} was cut; prepare the store again in an empty folder")
    return np.frombuffer(content, "<i4").reshape(-1, texts_per_record)


def is_full(error: Exception) -> bool:
    """Say whether an error is that of a full disk, or of a quota that is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def _other_count(url: str, found: int, shard: Shard) -> ValueError:
    return ValueError(
        f"{url} holds {found} records, {MANIFEST} says {shard.records}: one of them "
        "was changed; prepare the store again in an empty folder"
    )


def _array_record() -> Any:
    return importlib.import_module("array_record.python.array_record_module")


def _npy(lengths: array.array, columns: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(lengths, "<i4").reshape(-1, columns))
    return file.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextlib.contextmanager
def _partial(folder: str, name: str) -> Iterator[Path]:
    """Give a local path to write to, next to the file's place where that is local."""
    with contextlib.ExitStack() as stack:
        if storage.is_remote(folder):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            place = storage.local_path(folder)
            place.mkdir(parents=True, exist_ok=True)
        path = place / partial_name(name)
        stack.callback(path.unlink, missing_ok=True)
        yield path


@contextlib.contextmanager
def _array_record_writer(path: Path) -> Iterator:
    try:
        writer = _array_record().ArrayRecordWriter(str(path), WRITER_OPTIONS)
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:
        # The library has one kind of error for all that a file system says.
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        raise
