"""The loop: batches in, steps dispatched, metrics out, checkpoints on the way.

The host reads the metrics of earlier steps only after it has dispatched the next one,
so the device never waits for it. Batches are made ahead; how long the loop waited for
them all the same is in every line of metrics.
"""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from nomic_jax.batch import StepBatch
from nomic_jax.data.feed import feed
from nomic_jax.training.run_folder import Checkpoints, RunFolder
from nomic_jax.training.steps import Metrics, TrainState

if TYPE_CHECKING:
    from tqdm import tqdm

INTERRUPTED = 75  # exit status of a run that saved its state on a signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a stage trains and what it leaves behind."""

    steps: int  # optimizer steps
    batch_size: int  # rows, or queries, of the whole batch
    seed: int  # of data order, masks and dropout
    log_every: int = 10  # steps between lines of metrics, the means over these steps
    save_every: int = 500  # steps between checkpoints; one more comes at the end
    keep: int = 2  # checkpoints kept, the newest
    workers: int = 0  # processes that make batches; 0: threads of the training process

    def __post_init__(self) -> None:
        """Refuse counts below one, a negative seed or number of workers.

        Raises:
            ValueError: with the number.
        """
        for name in ("steps", "batch_size", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


def train(
    name: str,
    state: TrainState,
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batch_at: Callable[[int], StepBatch],
    config: LoopConfig,
    folder: RunFolder,
    *,
    learning_rate: Callable[[int], Any],
) -> TrainState:
    """Train from the folder's newest checkpoint, or from `state`, to the last step.

    What is logged is on disk before the checkpoint of the same step, so that a run
    killed at any moment and begun again has a line for every step, once.

    Args:
        name: the stage's, for the progress line.
        state: where a run without checkpoint begins; consumed.
        update: the compiled step.
        batch_at: the batch of a step, a pure function.
        config: steps and intervals.
        folder: where metrics and checkpoints go.
        learning_rate: the rate of a step, for the metrics.

    Raises:
        SystemExit: with status 75 after SIGTERM or SIGINT, once the state is saved.
    """
    from tqdm import tqdm

    with Checkpoints(folder.path, keep=config.keep) as checkpoints, _Signal() as asked:
        start = checkpoints.latest_step or 0
        if start:
            state = checkpoints.restore(state)
        folder.forget_metrics_after(start)
        waiting: list[tuple[int, StepBatch, Metrics]] = []
        with (
            tqdm(
                desc=name,
                initial=start,
                total=config.steps,
                unit="step",
                # A log file gets a line now and then, a terminal a live one.
                mininterval=0.5 if sys.stderr.isatty() else 15,
            ) as progress,
            feed(batch_at, start, config.steps, workers=config.workers) as batches,
        ):
            log = _Log(folder, progress, learning_rate)
            for step, batch in log.timed(batches):
                state, metrics = update(state, jax.device_put(batch.arrays))
                # While that step runs, the ones before it can be read at no cost.
                if step % config.log_every == 0:
                    log.write(waiting)
                done = step + 1
                waiting.append((done, batch, metrics))
                stop = asked.by is not None
                if stop or done % config.save_every == 0 or done == config.steps:
                    log.write(waiting)
                    checkpoints.save(done, state)
                if stop:
                    progress.write(
                        f"{name}: stopped after step {done} of {config.steps}; the "
                        "same command goes on from there",
                        file=sys.stderr,
                    )
                    raise SystemExit(INTERRUPTED)
    return state


class _Log:
    """Writes the means over the steps since the last line, here and in the bar."""

    def __init__(
        self,
        folder: RunFolder,
        progress: "tqdm",
        learning_rate: Callable[[int], Any],
    ):
        self.folder, self.progress, self.learning_rate = folder, progress, learning_rate
        self.began = time.monotonic()
        self.waited = 0.0  # seconds spent waiting for batches since then

    def timed(
        self, batches: Iterator[tuple[int, StepBatch]]
    ) -> Iterator[tuple[int, StepBatch]]:
        """Yield from the feed, and count how long it made the loop wait."""
        while True:
            asked = time.monotonic()
            item = next(batches, None)
            self.waited += time.monotonic() - asked
            if item is None:
                return
            yield item

    def write(self, waiting: list[tuple[int, StepBatch, Metrics]]) -> None:
        """Write a line for the steps that wait, if any do, and empty the list."""
        if not waiting:
            return
        values = jax.device_get([metrics for _, _, metrics in waiting])
        means = {
            key: float(sum(v[key] for v in values) / len(values)) for key in values[0]
        }
        now = time.monotonic()
        tokens = sum(batch.num_tokens for _, batch, _ in waiting)
        padding = 1 - tokens / sum(batch.num_columns for _, batch, _ in waiting)
        rate = tokens / (now - self.began)
        input_wait = self.waited / (now - self.began)
        self.began, self.waited = now, 0.0
        step, batch, _ = waiting[-1]
        self.progress.set_postfix_str(
            f"loss {means['loss']:.4f}, {rate / 1000:.1f}k tokens/s, "
            f"{padding:.0%} padding, {input_wait:.0%} waiting for input",
            refresh=False,
        )
        self.progress.update(len(waiting))
        self.folder.log(
            {
                "step": step,
                **means,
                "learning_rate": float(self.learning_rate(step - 1)),
                "tokens_per_second": round(rate, 1),
                "padding": round(padding, 4),  # share of the columns
                "input_wait": round(input_wait, 4),  # share of the time
                "source": batch.source,
                "time": round(time.time(), 3),
            }
        )
        waiting.clear()


class _Signal:
    """Notes SIGTERM or SIGINT, so that the loop can end between two steps."""

    def __init__(self):
        self.by: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signal":
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.by = number
        if number == signal.SIGINT:  # whoever presses Ctrl-C again will not wait
            signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
