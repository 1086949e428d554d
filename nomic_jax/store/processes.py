"""A few processes that each do one task after another, and stop when one fails."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")
Report = Callable[[int], Any]  # told of further work that is done

PATIENCE = 5.0  # seconds that a process gets to clean up before it is killed


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
        process.join(PATIENCE)
        raise ValueError(
            f"a worker process ended with exit code {process.exitcode} before its "
            "shard was done (-9 is a kill, as for want of memory); run the same "
            "command again, with fewer workers where memory is short"
        ) from None


def _join(process: Any) -> None:
    process.join(PATIENCE)
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
