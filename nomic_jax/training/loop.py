"""The loop: batches in, steps dispatched, metrics out, checkpoints on the way.

The host reads the metrics of earlier steps only after it has dispatched the next one,
so the device never waits for it. Batches are prefetched by Grain; how long the loop
waited for them all the same is in every line of metrics. Which batch comes next follows
from the step number alone, so no state of the input is ever saved, and threads and
worker processes give the same batches.

After SIGTERM or SIGINT all hosts stop after the same step. A `jax.profiler` trace of
some steps may be written into the run folder; TensorBoard's profile plugin, XProf and
Perfetto read it.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from nomic_jax.batch import StepBatch
from nomic_jax.config import did_you_mean
from nomic_jax.distributed.mesh import put_batch
from nomic_jax.storage import is_remote, join, local_path, publish
from nomic_jax.training.metrics import (
    FlopsPerToken,
    MetricsFile,
    MetricsLogger,
    SkipLimit,
    open_trackers,
    progress_bar,
)
from nomic_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from nomic_jax.training.placement import Placement, place_state
from nomic_jax.training.run_checkpoints import Checkpoints
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.steps import Metrics, Objective, TrainState, make_update

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


class Trace:
    """Traces the steps `first`, ..., `first + steps - 1`, counted from 1."""

    def __init__(self, folder: str, *, first: int, steps: int):
        """Trace into a folder or URL; with `first` 0, nothing."""
        self.folder, self.first, self.last = folder, first, first + steps - 1
        self._local: Path | None = None  # while a trace runs

    def __enter__(self) -> "Trace":
        """Return itself."""
        return self

    def before(self, step: int) -> None:
        """Begin if this step is the first one."""
        if step == self.first:
            remote = is_remote(self.folder)
            self._local = (
                Path(tempfile.mkdtemp()) if remote else local_path(self.folder)
            )
            jax.profiler.start_trace(self._local)

    def after(self, step: int, results: Any) -> None:
        """End if this step was the last one, once the devices have finished it."""
        if self._local is not None and step == self.last:
            jax.block_until_ready(results)
            self._stop()

    def __exit__(self, *_: object) -> None:
        """End a trace that the end of the run cut short."""
        if self._local is not None:
            self._stop()

    def _stop(self) -> None:
        assert self._local is not None
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        if is_remote(self.folder):
            for file in [path for path in local.rglob("*") if path.is_file()]:
                publish(file, join(self.folder, *file.relative_to(local).parts))
            shutil.rmtree(local)


INTERRUPTED = 75  # exit status of a run that saved its state on a signal
EVALUATION = "evaluation/"  # what the names of its metrics begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a stage trains and what it leaves behind."""

    steps: int  # optimizer steps
    batch_size: int  # rows, or queries, of the whole batch
    seed: int  # of data order, masks and dropout
    log_every: int = 10  # steps between lines of metrics, the means over these steps
    save_every: int = 500  # steps between checkpoints; one more comes at the end
    keep: int = 2  # checkpoints kept, the newest
    best: str = ""  # metric whose best checkpoint is kept besides: loss, evaluation/...
    best_mode: Literal["max", "min"] = "max"  # which of its values is the best
    evaluate_every: int = 0  # steps between evaluations; 0: none during training
    # for evaluations, besides what a prepare stage holds out: KIND:PLACE of each, as
    # `nomic-jax evaluate` takes them: retrieval:beir/nfcorpus, sts:stsb-dev.jsonl
    tasks: tuple[str, ...] = ()
    max_skipped_steps: int = 20  # in a row, of non-finite loss or gradient, to stop at
    profile_start: int = 0  # the first step that jax.profiler traces; 0: none
    profile_steps: int = 3  # steps that it traces
    tensorboard: bool = False  # event files too; needs the package tensorboardX
    wandb: str = ""  # project of Weights & Biases, which needs wandb; empty: none
    workers: int = 0  # processes that make batches; 0: threads of the training process

    def __post_init__(self) -> None:
        """Refuse counts below one, and what must not be negative.

        Raises:
            ValueError: with the number.
        """
        positive = ("steps", "batch_size", "log_every", "save_every", "keep")
        for name in (*positive, "max_skipped_steps", "profile_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "evaluate_every", "profile_start", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.best_mode not in ("max", "min"):
            raise ValueError(f"best_mode={self.best_mode!r} must be max or min")
        if self.tasks and not self.evaluate_every:
            raise ValueError(
                f"tasks={self.tasks} are measured by evaluations: set evaluate_every"
            )
        if self.best.startswith(EVALUATION) and not self.evaluate_every:
            raise ValueError(
                f"best={self.best!r} is measured by an evaluation: set evaluate_every"
            )


@runtime_checkable
class TrainingStage(Protocol):
    """What every stage that trains has."""

    @property
    def name(self) -> str:
        """Of the stage, and of its folder."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer and its schedule."""
        ...

    @property
    def train(self) -> LoopConfig:
        """Steps, batch size and intervals."""
        ...


def train_stage(
    stage: TrainingStage,
    model: Any,
    objective: Objective,
    batch_at: Callable[[int], StepBatch],
    placement: Placement,
    folder: RunFolder,
    *,
    frozen: Sequence[Any] = (),
    project: Callable[[Any], Any] | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    flops_per_token: FlopsPerToken | None = None,
) -> Any:
    """Train a stage's model: its objective's gradient, the optimizer, the loop.

    Args:
        stage: its name, optimizer and loop.
        model: where training starts; consumed.
        objective: of model, batch, key and the frozen encoders.
        batch_at: this host's rows of the batch of a step, a pure function.
        placement: the mesh.
        folder: where metrics and checkpoints go.
        frozen: what the step is given after the batch, placed.
        project: puts the model the optimizer leaves back where it may be.
        evaluate: measures a model, every `train.evaluate_every` steps.
        flops_per_token: of a batch's arrays, forward and backward, for the MFU.

    Returns:
        The trained model.
    """
    mesh, settings = placement.mesh, stage.train
    optimizer = make_optimizer(stage.optimizer, settings.steps)
    update = make_update(
        jax.value_and_grad(objective, has_aux=True),
        optimizer,
        seed=settings.seed,
        mesh=mesh,
        project=project,
    )
    state = train(
        stage.name,
        place_state(TrainState.fresh(model, optimizer), mesh),
        lambda state, batch: update(state, batch, *frozen),
        batch_at,
        settings,
        folder,
        learning_rate=learning_rate(stage.optimizer, settings.steps),
        place=lambda batch: put_batch(batch, mesh),
        evaluate=evaluate and (lambda state: evaluate(state.model)),
        flops_per_token=flops_per_token,
    )
    return state.model


def train(
    name: str,
    state: TrainState,
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batch_at: Callable[[int], StepBatch],
    config: LoopConfig,
    folder: RunFolder,
    *,
    learning_rate: Callable[[int], Any],
    place: Callable[[Any], Any] = jax.device_put,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    flops_per_token: FlopsPerToken | None = None,
) -> TrainState:
    """Train from the folder's newest checkpoint, or from `state`, to the last step.

    What is logged is on disk before the checkpoint of the same step, so that a run
    killed at any moment and begun again has a line for every step, once. With several
    hosts all of them call this, and the first one writes.

    Args:
        name: the stage's, for the progress line.
        state: where a run without checkpoint begins; consumed. Its placement is that of
            a restored one as well.
        update: the compiled step; where its metrics have `skipped`, those steps count
            towards `max_skipped_steps`.
        batch_at: this host's rows of the batch of a step, a pure function.
        config: steps and intervals.
        folder: where metrics and checkpoints go.
        learning_rate: the rate of a step, for the metrics.
        place: puts a batch's arrays on the devices.
        evaluate: measures a state, every `evaluate_every` steps.
        flops_per_token: of a batch's arrays, forward and backward, for the MFU.

    Raises:
        FloatingPointError: `max_skipped_steps` steps in a row had no finite loss and
            gradient; the checkpoints before stay.
        SystemExit: with status 75 after SIGTERM or SIGINT, once the state is saved.
        ValueError: a package or an evaluation that is asked for is not there, `best` is
            no metric, or no checkpoint can be read.
    """
    if config.evaluate_every and evaluate is None:
        raise ValueError(
            f"{name}: evaluate_every={config.evaluate_every}, but there is nothing to "
            "evaluate with; set it to 0"
        )
    writes = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                folder.place,
                keep=config.keep,
                best=config.best,
                best_mode=config.best_mode,
            )
        )
        asked = stack.enter_context(Interruption())
        start = checkpoints.latest_step or 0
        if start:
            state = checkpoints.restore(state)
        if start >= config.steps:
            return state
        file = MetricsFile(folder.metrics_file, after=start) if writes else None
        if file is not None:
            stack.callback(file.flush)  # what explains a failure, too
        trackers = open_trackers(
            folder.place,
            name=name,
            config=folder.config,
            start=start,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            writes=writes,
        )
        for tracker in trackers:
            stack.callback(tracker.close)
        trace = stack.enter_context(
            Trace(
                join(folder.place, "profile"),
                first=config.profile_start if writes else 0,
                steps=config.profile_steps,
            )
        )
        progress = stack.enter_context(
            progress_bar(name, start=start, steps=config.steps)
        )
        batches = stack.enter_context(
            feed(batch_at, start, config.steps, workers=config.workers)
        )
        watch = MetricsLogger(
            progress,
            file,
            trackers,
            learning_rate=learning_rate,
            flops_per_token=flops_per_token,
            skips=SkipLimit(config.max_skipped_steps),
        )
        for step, batch in watch.timed(batches):
            done = step + 1
            trace.before(done)
            state, metrics = update(state, place(batch.arrays))
            trace.after(done, (state, metrics))
            # While that step runs, the ones before it can be read at no cost.
            if step % config.log_every == 0:
                watch.write()
            watch.add(done, batch, metrics)
            stop = asked.asked()
            measured: dict[str, float] = {}
            if evaluate is not None and _every(config.evaluate_every, done):
                with watch.spending("evaluation"):
                    measured = {
                        EVALUATION + key: float(value)
                        for key, value in evaluate(state).items()
                    }
            due = done % config.save_every == 0 or done == config.steps
            # The best checkpoint must be there to be kept.
            due = due or (bool(measured) and config.best in measured)
            if not (measured or stop or due):
                continue
            line = watch.write(measured)
            _check_best(config.best, line, measured)
            if stop or due:
                if file is not None:
                    file.flush()
                with watch.spending("saving"):
                    checkpoints.save(done, state, line)
            if stop:
                progress.write(
                    f"{name}: stopped after step {done} of {config.steps}; the "
                    "same command goes on from there",
                    file=sys.stderr,
                )
                raise SystemExit(INTERRUPTED)
        if writes:
            kept = f"; best {config.best} at step {checkpoints.best_step}"
            said = watch.summary(name) + (kept if config.best else "")
            progress.write(said, file=sys.stderr)
    return state


def _every(interval: int, done: int) -> bool:
    return interval > 0 and done % interval == 0


def _check_best(
    best: str, line: Mapping[str, Any], measured: Mapping[str, float]
) -> None:
    """Refuse a best metric that no line will ever have.

    Raises:
        ValueError: with the nearest name there is.
    """
    if not best or best in line or (best.startswith(EVALUATION) and not measured):
        return
    known = [key for key, value in line.items() if isinstance(value, int | float)]
    raise ValueError(f"best={best!r} is not a metric: {did_you_mean(best, known)}")
