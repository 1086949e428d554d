"""An iterator on a thread: the same items, made before they are due."""

import threading

import pytest

from nomic_jax.inference.embedder import prefetch

LIMIT = 60  # seconds that a test waits before it fails


@pytest.mark.parametrize("buffer_size", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 10])
def test_items_come_all_and_in_their_order(count, buffer_size):
    assert list(prefetch(iter(range(count)), buffer_size=buffer_size)) == list(
        range(count)
    )


def test_items_are_made_while_their_taker_is_at_work():
    third = threading.Event()

    def items():
        yield 0
        yield 1
        third.set()
        yield 2

    taken = prefetch(items(), buffer_size=2)
    assert next(taken) == 0
    assert third.wait(LIMIT)  # while the first is still being worked on
    assert list(taken) == [1, 2]


def test_an_error_is_raised_where_its_item_was_due():
    def items():
        yield 0
        yield 1
        raise ValueError("no third")

    taken = prefetch(items(), buffer_size=8)
    assert [next(taken), next(taken)] == [0, 1]
    with pytest.raises(ValueError, match="no third"):
        next(taken)


def test_who_stops_early_leaves_no_thread_and_no_work_behind():
    made = []
    taken = prefetch((made.append(i) or i for i in range(1000)), buffer_size=2)
    assert next(taken) == 0
    before = threading.active_count()
    taken.close()
    assert threading.active_count() == before - 1
    assert len(made) < 1000
