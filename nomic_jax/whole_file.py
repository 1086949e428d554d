"""Files that are there whole or not at all: written beside their place, then moved."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its place when the block ends without an error.

    Until then a file that stood there keeps its place; after an error nothing is left.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """Return what a file is called while this process writes it: .NAME.HOST.ID.partial.

    Processes of several machines may write in one folder.
    """
    return f".{name}.{host_name()}.{os.getpid()}.partial"


def host_name() -> str:
    """Return this machine's name, without dots."""
    return socket.gethostname().replace(".", "-")
