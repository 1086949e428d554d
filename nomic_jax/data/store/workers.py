"""A pool of worker processes that stops when one fails, and the lock of a folder.

One preparation works in a local folder at a time. The lock is the operating system's
(flock), which is released when a process is killed; stale files are then removed.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from nomic_jax import storage
from nomic_jax.storage import host_name

Result = TypeVar("Result")
Report = Callable[[int], Any]  # told of further work that is done
TERMINATE_TIMEOUT = 5.0  # seconds that a process gets to clean up before it is killed


def run_tasks(
    function: Callable[[int, Report], Result],
    tasks: Sequence[int],
    *,
    workers: int,
    report: Report,
) -> Generator[Result, None, None]:
    """Yield the results of a function of each task, as they come.

    With one worker the tasks are done here. When the iterator is closed, or anything
    raises, all processes are stopped.

    Args:
        function: sent to every process once, so it must pickle; it is given a task and
            a callable for its own reports.
        tasks: numbers.
        workers: processes.
        report: called with every report.

    Raises:
        ValueError: a task raised it, or its process was killed.
    """
    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            yield function(task, report)
        return
    context = multiprocessing.get_context("spawn")
    waiting = iter(tasks)
    with contextlib.ExitStack() as stack:
        busy: dict[Connection, Any] = {}
        for task in (next(waiting) for _ in range(min(workers, len(tasks)))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, function))
            process.start()
            theirs.close()
            stack.callback(_join, process)
            stack.callback(ours.close)
            stack.callback(process.terminate)
            ours.send(task)
            busy[ours] = process
        while busy:
            for ours in multiprocessing.connection.wait(list(busy)):
                assert isinstance(ours, Connection)
                kind, value = _received(ours, busy[ours])
                if kind == "report":
                    report(value)
                    continue
                if kind == "error":
                    raise value
                task = next(waiting, None)
                if task is None:
                    del busy[ours]
                else:
                    ours.send(task)
                yield value


def _received(connection: Connection, process: Any) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        process.join(TERMINATE_TIMEOUT)
        raise ValueError(
            f"a worker process ended with exit code {process.exitcode} before its "
            "shard was done (-9 is a kill, as for want of memory); run the same "
            "command again, with fewer workers where memory is short"
        ) from None


def _join(process: Any) -> None:
    process.join(TERMINATE_TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _work(connection: Connection, function: Callable[[int, Report], Any]) -> None:
    # The processes share the cores already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C goes to the whole group; the parent says who stops, and files are removed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # The parent may be gone, which ends the pipe and so this process.
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = function(task, lambda done: connection.send(("report", done)))
            except ConnectionError:
                raise
            except ValueError as error:
                connection.send(("error", ValueError(str(error))))
            except Exception:
                text = traceback.format_exc()
                connection.send(("error", RuntimeError(f"a worker failed:\n{text}")))
            else:
                connection.send(("result", result))


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
