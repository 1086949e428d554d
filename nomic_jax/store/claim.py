"""Who works in a local folder: one preparation at a time, and what dead ones left.

The lock is the operating system's (flock), which it lets go when a process is killed.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from nomic_jax import storage
from nomic_jax.whole_file import host_name

LOCK = "preparation.lock"
ABANDONED = 3600.0  # seconds without a write: then a file of another machine is a rest


@contextlib.contextmanager
def claimed(folder: str) -> Iterator[None]:
    """Keep other preparations out of a local folder; at a URL nothing can be locked.

    Raises:
        ValueError: another prepare is at work in the folder, or it cannot be made.
    """
    storage.check_out(folder)
    if storage.is_remote(folder):
        yield
        return
    path = storage.local_path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, folder)
    try:
        yield
    finally:
        # Deleted before it is let go: who opened it meanwhile sees that it is gone.
        path.unlink(missing_ok=True)
        os.close(file)


def sweep(folder: str) -> None:
    """Delete what dead processes left of files they were writing.

    Files of a live process stay, and those of another machine for an hour after they
    were last written to: it cannot be asked whether its process lives.
    """
    if storage.is_remote(folder):
        return
    for path in storage.local_path(folder).glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):
            if _is_left(path):
                path.unlink()


def _locked(path: Path, folder: str) -> int:
    import fcntl

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ValueError(
                f"another prepare is at work in {folder}: wait for its end, or stop it"
            ) from None
        except OSError:  # not every network file system can lock
            return file
        # The one who had it may have deleted it since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


def _is_left(path: Path) -> bool:
    host, process = path.name.split(".")[-3:-1]
    if host != host_name() or not process.isdecimal():
        return time.time() - path.stat().st_mtime > ABANDONED
    if int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is another user's
        return False
    # A killed process whose parent is gone too may wait long to be collected.
    with contextlib.suppress(OSError):  # no Linux
        status = Path(f"/proc/{process}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "Z"
    return False
