"""An iterator that works ahead of who takes its items, on a thread of its own."""

import collections
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], *, room: int) -> Generator[Item]:
    """Yield the same items in the same order, so many of them made before they are due.

    It helps where making an item lets other threads work meanwhile, as the tokenizer
    and NumPy do. An error among the items is raised where its item was due. A caller
    that stops early waits for the item that is being made, and no other is begun.

    Args:
        items: none of them None.
        room: for items that wait to be taken.
    """
    with ThreadPoolExecutor(1) as worker:
        coming = collections.deque(
            worker.submit(next, items, None) for _ in range(room)
        )
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(worker.submit(next, items, None))
                yield item
        finally:
            worker.shutdown(wait=False, cancel_futures=True)
