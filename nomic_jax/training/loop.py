"""The loop: batches in, steps dispatched, metrics out, checkpoints on the way.

The host reads the metrics of earlier steps only after it has dispatched the next one,
so the device never waits for it. Batches are made ahead in threads by Grain; which
batch comes next follows from the step number alone.
"""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

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

    def __post_init__(self) -> None:
        """Refuse counts below one, and a negative seed.

        Raises:
            ValueError: with the number.
        """
        for name in ("steps", "batch_size", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """A step's arrays with what is said about them."""

    source: str
    arrays: Any  # MlmBatch or PairBatch, on the host
    num_tokens: int  # real ones, padding not counted


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
        with tqdm(
            desc=name,
            initial=start,
            total=config.steps,
            unit="step",
            # A log file gets a line now and then, a terminal a live one.
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as progress:
            log = _Log(folder, progress, learning_rate)
            for step, batch in _batches(batch_at, start, config.steps):
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


def _batches(
    batch_at: Callable[[int], StepBatch], start: int, stop: int
) -> Iterator[tuple[int, StepBatch]]:
    """Yield (step, batch), made ahead in threads, in order."""
    if start >= stop:
        return
    import grain

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    steps = grain.MapDataset.range(start, stop)
    for step, batch in steps.map(lambda step: (step, batch_at(step))).to_iter_dataset(
        options
    ):
        yield int(step), batch


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
        rate = tokens / (now - self.began)
        self.began = now
        step, batch, _ = waiting[-1]
        self.progress.set_postfix_str(
            f"loss {means['loss']:.4f}, {rate / 1000:.1f}k tokens/s", refresh=False
        )
        self.progress.update(len(waiting))
        self.folder.log(
            {
                "step": step,
                **means,
                "learning_rate": float(self.learning_rate(step - 1)),
                "tokens_per_second": round(rate, 1),
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
