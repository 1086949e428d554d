"""Sides timed in turns in one run, so that the machine's moods hit them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def in_turns(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each side once a round, after a round that is not timed.

    Every other round goes through the sides backwards: none always runs behind the
    same other one. A side waits itself for what it set going on a device.

    Args:
        sides: what to run, by the name of the side.
        rounds: how often each side is timed.
        clock: seconds; `time.process_time` counts those of this process's threads.

    Returns:
        The seconds of every round, by the name of the side.

    Raises:
        ValueError: there is no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} times nothing; give at least 1")
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            began = clock()
            sides[name]()
            seconds[name].append(clock() - began)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of two sides, round by round.

    A round's two figures were taken one after the other, so what slows the machine for
    longer than that cancels.
    """
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
