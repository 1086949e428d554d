"""Parquet files as a source: lengths from their footers, ranges by row groups."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.fields import nearest
from nomic_jax.sources.files import fingerprint_of, matching, open_file, version_of
from nomic_jax.sources.source import Row, check_name, parts, source_name

_BATCH = 256  # rows taken out of a row group at a time


@dataclasses.dataclass(frozen=True)
class ParquetRows:
    """Rows of one or several Parquet files, in the files' order."""

    name: str
    files: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]  # rows of each file's row groups
    columns: tuple[str, ...]  # that are read
    fingerprint: str

    @classmethod
    def open(
        cls,
        url: str | Path,
        name: str | None = None,
        *,
        columns: Sequence[str] | None = None,
    ) -> "ParquetRows":
        """Read the footers of a file, or of all that match a pattern.

        Args:
            url: .parquet, local or at an fsspec URL, or a pattern such as
                `dump/*.parquet`, whose files are read in the order of their names.
            name: of the source; the file's own without its ending where not given.
            columns: to read; all where not given. Others are not fetched.

        Raises:
            ValueError: a file is not Parquet or lacks a column, files differ in their
                columns, or there is no row.
        """
        files, groups, known = matching(url), [], None
        for place in files:
            with _opened(place) as file:
                footer, found = file.metadata, tuple(file.schema_arrow.names)
                counts = [
                    footer.row_group(i).num_rows for i in range(footer.num_row_groups)
                ]
            if columns is None and known not in (None, found):
                raise ValueError(
                    f"{place} has the columns {', '.join(found)}, {files[0]} has "
                    f"{', '.join(known or ())}: files of one source have the same"
                )
            known = found
            for column in columns or ():
                if column not in found:
                    raise ValueError(
                        f"{place}: no column {column!r}; {nearest(column, found)}"
                    )
            groups.append(tuple(counts))
        if not sum(map(sum, groups)):
            raise ValueError(f"{url} is empty: at least one row is needed")
        return cls(
            check_name(name or source_name(url)),
            files,
            tuple(groups),
            tuple(columns if columns is not None else known or ()),
            fingerprint_of({place: version_of(place) for place in files}),
        )

    def restricted(self, columns: Sequence[str]) -> "ParquetRows":
        """Return a source that reads these columns alone; all if it lacks one.

        Then the error of whoever misses it can name what there is.
        """
        if not set(columns) <= set(self.columns):
            return self
        return dataclasses.replace(self, columns=tuple(dict.fromkeys(columns)))

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(map(sum, self.groups))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield a range, of whose row groups alone the columns are read."""
        for part, first, last in parts([*map(sum, self.groups)], start, stop):
            with _opened(self.files[part]) as file:
                for group, *span in parts(self.groups[part], first, last):
                    yield from self._group_rows(file, group, *span)

    def place(self, row: int) -> str:
        """Name a row by its file and its number in it, from 0."""
        for part, first, _ in parts([*map(sum, self.groups)], row, row + 1):
            return f"{self.files[part]}, row {first}"
        raise ValueError(f"source {self.name!r} has {len(self)} rows, none is {row}")

    def _group_rows(
        self, file: Any, group: int, start: int, stop: int
    ) -> Iterator[Row]:
        batches = file.iter_batches(
            batch_size=_BATCH, row_groups=[group], columns=list(self.columns)
        )
        before = 0
        for batch in batches:
            if before >= stop:
                return
            wanted = batch.slice(max(start - before, 0), stop - max(before, start))
            before += batch.num_rows
            yield from wanted.to_pylist()


@contextlib.contextmanager
def _opened(place: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    with open_file(place) as raw:
        try:
            # Columns are read in pieces: a row group may be larger than the memory.
            file = pyarrow.parquet.ParquetFile(
                raw, pre_buffer=False, buffer_size=1 << 20
            )
            with file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{place} cannot be read as Parquet: {reason}") from error
