"""The open files of all stores of a process: no more than the system allows.

When they near the soft limit of open files it is raised to the hard one, and when that
is not enough the readers that were longest not used are closed.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

SPARE = 256  # open files left to the rest of the process, or half of them if few


class _Kept:
    def __init__(self, reader: Any):
        self.reader = reader
        self.users = 0  # threads that read from it now
        self.dropped = False


class OpenReaders:
    """Readers by owner and number; one that is in use is never closed."""

    def __init__(self, limit: int | None = None):
        """Take the most that may be open; None: what the system allows."""
        self._limit = limit
        self._kept: collections.OrderedDict[tuple[int, int], _Kept] = (
            collections.OrderedDict()
        )
        self._abandoned: collections.deque[int] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._kept)

    @contextlib.contextmanager
    def lent(
        self,
        owner: int,
        index: int,
        opening: Callable[[], Any],
        opens: contextlib.AbstractContextManager[Any],
    ) -> Iterator[Any]:
        """Lend an owner's reader, opened if it is not open.

        Args:
            owner: number of the store.
            index: of its shard.
            opening: opens the shard; the file may first be fetched.
            opens: the owner's lock, so that no file is fetched by two threads.
        """
        key = owner, index
        kept = self._taken(key)
        if kept is None:
            with opens:
                kept = self._taken(key) or self._added(key, opening())
        try:
            yield kept.reader
        finally:
            with self._lock:
                kept.users -= 1
                if kept.dropped and not kept.users:
                    kept.reader.close()

    def drop(self, owner: int) -> None:
        """Close an owner's readers, those in use when they are given back."""
        with self._lock:
            self._drop(owner)

    def abandon(self, owner: int) -> None:
        """Drop an owner that was collected, soon if the lock is not free.

        The collector may run while this very thread holds the lock.
        """
        self._abandoned.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                while self._abandoned:
                    self._drop(self._abandoned.popleft())
            finally:
                self._lock.release()

    def _drop(self, owner: int) -> None:
        for key in [key for key in list(self._kept) if key[0] == owner]:
            kept = self._kept.pop(key)
            kept.dropped = True
            if not kept.users:
                kept.reader.close()

    def _taken(self, key: tuple[int, int]) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                kept.users += 1
                self._kept.move_to_end(key)
            return kept

    def _added(self, key: tuple[int, int], reader: Any) -> _Kept:
        kept = _Kept(reader)
        kept.users = 1
        with self._lock:
            while self._abandoned:
                self._drop(self._abandoned.popleft())
            self._kept[key] = kept
            if self._limit is None:
                self._limit = allowed()
            idle = [k for k, other in self._kept.items() if not other.users]
            for old in idle[: max(len(self._kept) - self._limit, 0)]:
                self._kept.pop(old).reader.close()
        return kept


def allowed() -> int:
    """Raise the soft limit of open files to the hard one; return how many are ours."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Nobody is told that the hard limit is endless: some systems then refuse it.
    wanted = 2**16 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        soft = wanted
    return max(soft - SPARE, soft // 2)


READERS = OpenReaders()  # of this process
