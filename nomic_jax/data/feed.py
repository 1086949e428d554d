"""Feeding: batches made ahead of the step that takes them, in order, by Grain.

Which batch comes next follows from the step number alone, so nothing of a feed is ever
saved, and threads and worker processes give the same batches.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator

from nomic_jax.batch import StepBatch

THREADS = 2  # where no worker processes are asked for
AHEAD = 8  # batches kept ready, of each worker


@contextlib.contextmanager
def feed(
    batch_at: Callable[[int], StepBatch], start: int, stop: int, *, workers: int = 0
) -> Generator[Iterator[tuple[int, StepBatch]]]:
    """Give an iterator over (step, batch); what makes batches ends with the block.

    Args:
        batch_at: the batch of a step, a pure function; for worker processes it must be
            one that can be pickled.
        start: the first step.
        stop: the step after the last.
        workers: processes that make batches; 0: threads of this process.
    """
    if start >= stop:
        yield iter(())
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # Grain 0.2.18 reads a flag of its own when it starts processes, and absl
        # refuses that in a program that does not parse its command line with absl.
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(
        num_threads=1 if workers else THREADS, prefetch_buffer_size=AHEAD
    )
    steps = grain.MapDataset.range(start, stop).map(_Numbered(batch_at))
    processes = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=AHEAD
    )
    batches = iter(steps.to_iter_dataset(options).mp_prefetch(processes))
    try:
        yield batches
    finally:
        batches.close()


class _Numbered:
    """The batch of a step with its number; a class, as workers get it pickled."""

    def __init__(self, batch_at: Callable[[int], StepBatch]):
        self.batch_at = batch_at

    def __call__(self, step: int) -> tuple[int, StepBatch]:
        return int(step), self.batch_at(int(step))
