"""Parquet files, folders saved by Hugging Face `datasets`, and TensorFlow Datasets.

Parquet tells its length in the footer and is read by row groups. TFDS reads ArrayRecord
files in pure Python, without TensorFlow: the data set must have been prepared in that
format, and its rows come in the order of the files, which TFDS shuffled.
"""

import contextlib
import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nomic_jax.config import did_you_mean
from nomic_jax.data.sources.files import (
    files_below,
    fingerprint_of,
    matching,
    open_file,
    version_of,
    versions_of,
    whole_place,
)
from nomic_jax.data.sources.source import Row, check_name, parts, source_name
from nomic_jax.storage import is_remote

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
                        f"{place}: no column {column!r}; {did_you_mean(column, found)}"
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


_DATASET_BATCH = 256  # rows taken at a time


@dataclasses.dataclass(frozen=True)
class DatasetsRows:
    """The rows of a data set that `save_to_disk` wrote; its files are memory-mapped."""

    name: str
    folder: str
    count: int
    fingerprint: str

    @classmethod
    def open(cls, folder: str | Path, name: str | None = None) -> "DatasetsRows":
        """Open a local folder.

        Args:
            folder: of one data set; of several splits, that of one of them.
            name: of the source; the folder's own where not given.

        Raises:
            ValueError: `datasets` is not installed, the folder is none of its own or
                holds several splits, or there is no row.
        """
        place = whole_place(folder)
        if is_remote(place):
            raise ValueError(f"{place}: copy the folder to a local disk first")
        count = len(_load(place))
        if not count:
            raise ValueError(f"{place} is empty: at least one row is needed")
        digest = fingerprint_of(versions_of(files_below(place)))
        return cls(check_name(name or source_name(place)), place, count, digest)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.count

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows of a range."""
        dataset = _load(self.folder)
        stop = min(stop, self.count)
        for first in range(max(start, 0), stop, _DATASET_BATCH):
            columns = dataset[first : min(first + _DATASET_BATCH, stop)]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    def place(self, row: int) -> str:
        """Name a row by its folder and number, from 0."""
        return f"{self.folder}, row {row}"


def _load(folder: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            f"{folder} needs the package `datasets`, which is not installed: "
            "pip install datasets"
        )
    import datasets

    try:
        found = datasets.load_from_disk(folder)
    except (OSError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} is not a saved data set: {reason}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(str(Path(folder, str(split))) for split in found)
        raise ValueError(f"{folder} holds several splits; name one of {splits}")
    return found


_TFDS_BATCH = 256  # records fetched at a time


@dataclasses.dataclass(frozen=True)
class TfdsRows:
    """The examples of one split of a data set; texts are decoded."""

    name: str
    dataset: str  # "wikipedia/20230601.en"
    split: str  # "train", or a part of it: "train[:10%]"
    data_dir: str | None
    count: int
    fingerprint: str

    @classmethod
    def open(
        cls, dataset: str, name: str | None = None, *, data_dir: str | None = None
    ) -> "TfdsRows":
        """Find a prepared data set.

        Args:
            dataset: with its split: `wikipedia/20230601.en:train`, `glue/mrpc:train`.
            name: of the source; made of the data set's where not given.
            data_dir: where it was prepared; TFDS's own folder (`TFDS_DATA_DIR`, or
                tensorflow_datasets in the home folder) where not given.

        Raises:
            ValueError: there is no such data set or split, it is not prepared, or in
                another format than array_record.
        """
        # A part of a split holds a colon of its own, and so does a version.
        match = re.fullmatch(r"([^:\[]+(?::\d+\.\d+\.\d+)?):([^:]+(\[.*\])?)", dataset)
        if match is None:
            raise ValueError(
                f"tfds:{dataset} names no split; write it as tfds:glue/mrpc:train"
            )
        known, split = match[1], match[2]
        source, builder = _data_source(known, split, data_dir)
        if not len(source):
            raise ValueError(f"tfds:{dataset} is empty: at least one row is needed")
        made = re.sub(r"[^\w.]+", "-", f"{known}-{split}").strip("-")
        files = [(file, file.stat()) for file in builder.data_path.iterdir()]
        digest = fingerprint_of(
            {str(file): f"{stat.length} {stat.mtime}" for file, stat in files}, split
        )
        return cls(
            check_name(name or made), known, split, data_dir, len(source), digest
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.count

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the examples of a range as texts, numbers and lists of them.

        Raises:
            ValueError: a text is not UTF-8.
        """
        source, _ = _data_source(self.dataset, self.split, self.data_dir)
        stop = min(stop, self.count)
        for first in range(max(start, 0), stop, _TFDS_BATCH):
            numbers = range(first, min(first + _TFDS_BATCH, stop))
            examples = source.__getitems__(list(numbers))
            for number, example in zip(numbers, examples, strict=True):
                try:
                    yield _plain(example)
                except UnicodeDecodeError as error:
                    raise ValueError(f"{self.place(number)}: {error}") from error

    def place(self, row: int) -> str:
        """Name an example, for an error to begin with."""
        return f"tfds:{self.dataset}:{self.split}, row {row}"


def _data_source(dataset: str, split: str, data_dir: str | None) -> tuple[Any, Any]:
    with _without_warnings():
        from tensorflow_datasets.core import read_only_builder, registered

        problem = f"tfds:{dataset}:{split} cannot be opened"
        prepare = (
            "where TensorFlow is installed, run once tensorflow_datasets.builder("
            f"{dataset!r}, file_format='array_record').download_and_prepare()"
        )
        try:
            # By its files alone: the code of many data sets imports TensorFlow.
            builder: Any = read_only_builder.builder_from_files(
                dataset, data_dir=data_dir
            )
        except registered.DatasetNotFoundError as error:
            where = data_dir or "TFDS's own folder, nor in TFDS_DATA_DIR"
            raise ValueError(
                f"{problem}: it is not prepared in {where}; {prepare}"
            ) from error
        found = builder.info.file_format.value
        if found != "array_record":
            raise ValueError(
                f"{problem}: its format is {found}, array_record is needed; {prepare} "
                "with another data_dir"
            )
        try:
            return builder.as_data_source(split=split), builder
        except (ValueError, KeyError, AssertionError) as error:
            known = ", ".join(builder.info.splits)
            raise ValueError(
                f"{problem}: there is no such split, or nothing in that part of it; "
                f"splits: {known}"
            ) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    # TFDS reads its own descriptions by a call that protobuf means to remove.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _plain(value: Any) -> Any:
    """Turn bytes into texts and arrays into lists, at any depth."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
        return _plain(value) if isinstance(value, bytes | list) else value
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
