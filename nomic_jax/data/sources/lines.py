"""Lines of text files, plain or gzip, read from the start or by an index from anywhere.

The index holds the place of every thousandth row. It is built once and kept in the
user's cache folder until the file changes. gzip is entered at points that indexed_gzip
finds once; a point holds the 32 KiB before it, which is all that deflate can refer to
(RFC 1951, section 2; zlib's `zran` example is the same idea).
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64

from nomic_jax.data.sources.files import (
    cache_folder,
    cannot_read,
    fingerprint_of,
    matching,
    open_file,
    version_of,
    whole_place,
)
from nomic_jax.data.sources.source import parts
from nomic_jax.storage import size, whole_file

MIN_SPACING = 4 << 20  # bytes of text between two points
MAX_POINTS = 1024  # 32 MiB of them, whatever the file's size
_GUESSED_RATIO = 4  # of text to its gzip, to space the points


def find_points(place: str) -> bytes:
    """Read a whole gzip file and return the points to start at.

    The file must be sound: damage is not always noticed here.
    """
    import indexed_gzip

    spacing = max(MIN_SPACING, _GUESSED_RATIO * size(place) // MAX_POINTS)
    points = io.BytesIO()
    with (
        open_file(place) as raw,
        indexed_gzip.IndexedGzipFile(fileobj=raw, spacing=spacing) as file,
    ):
        inner: Any = file.raw
        inner.build_full_index()
        inner.export_index(fileobj=points)
    return points.getvalue()


@contextlib.contextmanager
def open_at(place: str, *, offset: int, points: bytes) -> Iterator[IO[bytes]]:
    """Open a gzip file's text at a byte of it."""
    import indexed_gzip

    with open_file(place) as raw, indexed_gzip.IndexedGzipFile(fileobj=raw) as file:
        inner: Any = file.raw
        inner.import_index(fileobj=io.BytesIO(points))
        file.seek(offset)
        yield file


SPACING = 1000  # rows between two places in the index
Split: TypeAlias = Literal["lines", "paragraphs"]


class Line(NamedTuple):
    """A line that is not blank, or a paragraph of such lines."""

    number: int  # of its first line in the file, from 1
    offset: int  # of its first byte in the uncompressed file
    text: str  # without the end of the line


@dataclasses.dataclass(frozen=True, eq=False)
class LineIndex:
    """Where the rows of one file are; a row is a `Line`."""

    place: str
    split: Split
    version: str  # of the file, as `version_of` gives
    count: int  # of rows
    offsets: Int64[np.ndarray, "blocks"]  # of rows 0, 1000, ... in the text
    numbers: Int64[np.ndarray, "blocks"]  # of their lines, from 1

    @classmethod
    def of(cls, place: str | Path, *, split: Split = "lines") -> "LineIndex":
        """Find a file's index in the cache, or read the whole file and build it.

        A gzip file is read twice: to check it, then to find points to start at.

        Raises:
            ValueError: the file cannot be read, is not UTF-8, or its gzip is broken
                or cut; file and line are named.
        """
        place = whole_place(place)
        version = version_of(place)
        with contextlib.suppress(OSError, EOFError, *_BROKEN_CACHE):
            path = _cached(place, version, f"{split}.npz")
            with path.open("rb") as file, np.load(file) as kept:
                count, offsets, numbers = (kept[name] for name in _FIELDS)
                return cls(place, split, version, int(count), offsets, numbers)
        count, offsets, numbers = 0, [], []
        for line in read_lines(place, split=split):
            if count % SPACING == 0:
                offsets.append(line.offset)
                numbers.append(line.number)
            count += 1
        arrays = (np.array(offsets, np.int64), np.array(numbers, np.int64))
        if place.endswith(".gz") and count > SPACING:
            _points(place, version)
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip(_FIELDS, (np.int64(count), *arrays), strict=True)))
        _keep(_cached(place, version, f"{split}.npz"), buffer.getvalue())
        return cls(place, split, version, count, *arrays)

    def read(self, start: int, stop: int) -> Iterator[Line]:
        """Yield rows `start` to `stop`, reading from the block that holds the first.

        Raises:
            ValueError: the file was changed since it was indexed, or cannot be read.
        """
        start, stop = max(start, 0), min(stop, self.count)
        if start >= stop:
            return
        if version_of(self.place) != self.version:
            raise ValueError(
                f"{self.place} was changed while it was in use; open it again"
            )
        block, skipped = divmod(start, SPACING)
        rows = _rows(
            _lines(
                self.place,
                offset=int(self.offsets[block]) if block else 0,
                number=int(self.numbers[block]) if block else 1,
                version=self.version,
            ),
            self.split,
        )
        found = skipped
        for line in itertools.islice(rows, skipped, skipped + stop - start):
            found += 1
            yield line
        if found < skipped + stop - start:
            row = block * SPACING + found
            raise ValueError(
                f"{self.place} ends after {row} rows, its index says {self.count}: the "
                f"file was changed; open it again"
            )

    def number(self, row: int) -> int:
        """Return the number of a row's first line in the file, from 1.

        Blank lines are no rows, so the block is read again.
        """
        return next(self.read(row, row + 1)).number


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedFiles:
    """The rows of several files, one file after the other."""

    files: tuple[LineIndex, ...]

    @classmethod
    def of(cls, url: str | Path, *, split: Split = "lines") -> "IndexedFiles":
        """Index a file, or all that match a pattern, in the order of their names.

        Raises:
            ValueError: a file holds no row, cannot be read, is not UTF-8, or its gzip
                is broken or cut; file and line are named.
        """
        files = tuple(LineIndex.of(place, split=split) for place in matching(url))
        for file in files:
            if not file.count:
                raise ValueError(f"{file.place} is empty: a line of text is needed")
        return cls(files)

    @property
    def counts(self) -> list[int]:
        """Numbers of rows by file."""
        return [file.count for file in self.files]

    @property
    def fingerprint(self) -> str:
        """Digest of places, sizes and times, and of what a row is."""
        versions = {file.place: file.version for file in self.files}
        return fingerprint_of(versions, *(file.split for file in self.files))

    def read(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """Yield places, to begin an error with, and texts of a range of rows."""
        for part, first, last in parts(self.counts, start, stop):
            file = self.files[part]
            for line in file.read(first, last):
                yield f"{file.place}:{line.number}", line.text

    def place(self, row: int) -> str:
        """Name a row by its file and first line, from 1."""
        for part, first, _ in parts(self.counts, row, row + 1):
            return f"{self.files[part].place}:{self.files[part].number(first)}"
        raise ValueError(f"there are {sum(self.counts)} rows, none is {row}")


def read_lines(place: str | Path, *, split: Split = "lines") -> Iterator[Line]:
    """Yield a file's rows from its start, without an index.

    Args:
        place: a text file; gzip where it ends in .gz.
        split: a row is a line that is not blank, or the lines up to a blank one.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or its gzip is broken or
            cut; file and line are named.
    """
    return _rows(_lines(str(place), offset=0, number=1, version=""), split)


def _rows(lines: Iterator[Line], split: Split) -> Iterator[Line]:
    if split == "lines":
        yield from (line for line in lines if line.text)
        return
    for blank, group in itertools.groupby(lines, key=lambda line: not line.text):
        if not blank:
            first, *others = group
            text = "\n".join([first.text, *(line.text for line in others)])
            yield first._replace(text=text)


def _lines(place: str, *, offset: int, number: int, version: str) -> Iterator[Line]:
    """Yield all lines, the blank ones as empty texts, from an offset on."""
    try:
        with _opened(place, offset, version) as file:
            for line in file:
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{place}:{number}: byte {offset + error.start} of the file, "
                        f"0x{line[error.start]:02x}, is not UTF-8"
                    ) from error
                if number == 1:
                    # Editors on Windows begin a file with a mark no format knows.
                    text = text.removeprefix("\ufeff")
                yield Line(number, offset, text.rstrip())
                offset += len(line)
                number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{place}: broken gzip after line {number - 1}: {error}"
        ) from error
    except OSError as error:
        raise cannot_read(place, error) from error


@contextlib.contextmanager
def _opened(place: str, offset: int, version: str) -> Iterator[Iterable[bytes]]:
    if place.endswith(".gz") and offset:
        points = _points(place, version)
        with open_at(place, offset=offset, points=points) as file:
            yield file
        return
    with open_file(place) as raw:
        if place.endswith(".gz"):
            with gzip.open(raw) as file:
                yield file
        else:
            raw.seek(offset)
            yield raw


def _points(place: str, version: str) -> bytes:
    path = _cached(place, version, "points")
    with contextlib.suppress(OSError):
        return path.read_bytes()
    points = find_points(place)
    _keep(path, points)
    return points


_FIELDS = ("count", "offsets", "numbers")
_BROKEN_CACHE = (KeyError, ValueError, zipfile.BadZipFile)


def _cached(place: str, version: str, ending: str) -> Path:
    key = hashlib.blake2b(f"{place}\0{version}".encode(), digest_size=16).hexdigest()
    return cache_folder() / f"{key}.{ending}"


def _keep(path: Path, content: bytes) -> None:
    # Without a cache that can be written, the index is built each time.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(content)
