"""Folders that Hugging Face `datasets` saved, as a source, where it is installed."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nomic_jax.sources.files import (
    files_below,
    fingerprint_of,
    versions_of,
    whole_place,
)
from nomic_jax.sources.source import Row, check_name, source_name
from nomic_jax.storage import is_remote

_BATCH = 256  # rows taken at a time


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
        for first in range(max(start, 0), stop, _BATCH):
            columns = dataset[first : min(first + _BATCH, stop)]
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
        raise ValueError(f"{folder} is no saved data set: {reason}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(str(Path(folder, str(split))) for split in found)
        raise ValueError(f"{folder} holds several splits; name one of {splits}")
    return found
