"""Folders at a URL, for code that reads and writes local ones.

A local folder is used as it is; one of a store is written here first and uploaded, or
fetched to be read.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nomic_jax.storage import (
    folders,
    is_remote,
    join,
    local_path,
    name_of,
    publish,
    read_bytes,
    sizes,
)


@contextlib.contextmanager
def written_here(place: str | Path, *, last: str) -> Iterator[Path]:
    """Give a local folder to write; what it holds at the end goes to its place.

    Args:
        place: a local folder, which is given itself, or a URL.
        last: the file whose presence says that the folder is complete; uploaded last.
    """
    if not is_remote(place):
        yield local_path(place)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name_of(place)
        yield folder
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in sorted(files, key=lambda path: path == folder / last):
            publish(path, join(place, *path.relative_to(folder).parts))


@contextlib.contextmanager
def read_here(place: str | Path) -> Iterator[Path]:
    """Give a local folder with a folder's files, for as long as it is needed.

    Args:
        place: a local folder, which is given itself, or a URL.
    """
    if not is_remote(place):
        yield local_path(place)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name_of(place)
        _fetch(str(place), folder)
        yield folder


def _fetch(place: str, folder: Path) -> None:
    folder.mkdir()
    for name in sizes(place):
        (folder / name).write_bytes(read_bytes(join(place, name)))
    for name in folders(place):
        _fetch(join(place, name), folder / name)
