"""SIGTERM and SIGINT, as a question that all hosts answer alike after a step."""

import itertools
import os
import signal
from typing import Any

import jax

# Steps of this process, of all its stages: JAX agrees on one that is yet to come, so
# that a signal between two stages stops the next one after its first step.
_steps = itertools.count(1)


class Interruption:
    """Notes a signal, so that the loop can end between two steps.

    With several hosts, whichever gets SIGTERM, all stop after the same step. JAX's
    preemption service agrees on it in the background, with no collective in the steps:
    each host says once a step how far it is, and the first step that none has begun is
    taken. That service listens to SIGTERM itself, so a handler here would silence it.
    """

    def __init__(self):
        """Prepare for one host or several, as `jax.distributed` was started."""
        self.shared = jax.process_count() > 1
        self.by: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        """Begin to listen."""
        numbers = (signal.SIGINT,) if self.shared else (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.by = number
        if number == signal.SIGINT:  # whoever presses Ctrl-C again will not wait
            signal.signal(number, self._before[number])
            if self.shared:
                os.kill(os.getpid(), signal.SIGTERM)

    def asked(self) -> bool:
        """Say whether to stop after this step; to be asked once after each."""
        if self.shared:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(next(_steps))
        return self.by is not None

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
