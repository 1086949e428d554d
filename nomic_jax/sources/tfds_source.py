"""Data sets of TensorFlow Datasets as a source, read without TensorFlow.

TFDS reads ArrayRecord files in pure Python; the data set must have been prepared in
that format. Rows come in the order of the files, which TFDS shuffled as it wrote them.
"""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from nomic_jax.sources.files import fingerprint_of
from nomic_jax.sources.source import Row, check_name

_BATCH = 256  # records fetched at a time


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
        for first in range(max(start, 0), stop, _BATCH):
            numbers = range(first, min(first + _BATCH, stop))
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
