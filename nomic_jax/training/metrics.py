"""Metrics of a run: one line for some steps, on disk, in trackers, in a progress bar.

A line holds the means over its steps, per source where a step's batch is of one, and
how the time was spent. Steps that were skipped as not finite are counted, and too many
in a row end the run. TensorBoard and Weights & Biases are optional, and imported only
when a run asks for them.
"""

import contextlib
import hashlib
import importlib
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import jax

from nomic_jax.batch import StepBatch
from nomic_jax.storage import (
    exists,
    is_remote,
    join,
    local_path,
    read_bytes,
    write_bytes,
)
from nomic_jax.training.flops import device_memory, peak_flops
from nomic_jax.training.steps import Metrics

if TYPE_CHECKING:
    from tqdm import tqdm


class TensorBoard:
    """Event files in the run folder, by tensorboardX."""

    def __init__(self, folder: str, *, start: int):
        """Write into a folder; what it holds of steps beyond `start` is superseded.

        Raises:
            ValueError: tensorboardX is not installed.
        """
        package = _package("tensorboardX", asked="tensorboard=True")
        self._writer = package.SummaryWriter(folder, purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, the same one when the folder is resumed."""

    def __init__(
        self, project: str, folder: str, *, name: str, config: Mapping[str, Any]
    ):
        """Open the run of a folder.

        Args:
            project: of Weights & Biases.
            folder: the stage's; its place is what the run is known by.
            name: shown for the run.
            config: the stage's, resolved.

        Raises:
            ValueError: wandb is not installed.
        """
        self._run = _package("wandb", asked=f"wandb={project!r}").init(
            project=project,
            name=name,
            id=hashlib.sha256(folder.encode()).hexdigest()[:16],
            resume="allow",
            config=dict(config),
            # Its own files; a URL is no place for them.
            dir=None if is_remote(folder) else folder,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


Tracker: TypeAlias = TensorBoard | WeightsAndBiases


def open_trackers(
    folder: str,
    *,
    name: str,
    config: Mapping[str, Any],
    start: int,
    tensorboard: bool,
    wandb: str,
    writes: bool = True,
) -> list[Tracker]:
    """Open what is asked for.

    A package that is missing is an error on every host, not only on the one that would
    use it, while the others wait for that one.

    Args:
        folder: the stage's, absolute or a URL.
        name: the stage's.
        config: the stage's, resolved.
        start: the step the run goes on from.
        tensorboard: whether to write event files into `folder`/tensorboard.
        wandb: the project of Weights & Biases, empty for none.
        writes: whether this host is the one that writes.

    Raises:
        ValueError: a package is not installed; it is named.
    """
    trackers: list[Tracker] = []
    if tensorboard and _package("tensorboardX", asked="tensorboard=True") and writes:
        trackers.append(TensorBoard(join(folder, "tensorboard"), start=start))
    if wandb and _package("wandb", asked=f"wandb={wandb!r}") and writes:
        trackers.append(WeightsAndBiases(wandb, folder, name=name, config=config))
    return trackers


def _package(name: str, *, asked: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{asked} needs the package {name}, which is not installed; run `pip "
            f"install {name}`, or leave it out: metrics.jsonl is always written"
        ) from error


class SkipLimit:
    """Ends a run after a number of skipped steps in a row."""

    def __init__(self, limit: int):
        """Allow fewer than `limit` skipped steps in a row."""
        self.limit = limit
        self.in_a_row = 0

    def check(self, step: int, values: Any) -> None:
        """Count one step's metrics, read from the device, in the order of the steps.

        Raises:
            FloatingPointError: as many steps in a row as the limit were skipped.
        """
        self.in_a_row = self.in_a_row + 1 if values.get("skipped", 0) else 0
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"loss {float(values['loss'])} and gradient norm "
                f"{float(values['gradient_norm'])} at step {step}: the last "
                f"{self.in_a_row} steps were skipped, which is max_skipped_steps; the "
                "last checkpoint is kept; lower the learning rate or set clip_norm, or "
                "look at the data of these steps"
            )


REMOTE_SECONDS = 60.0  # between writes of a metrics file that is a URL


class MetricsFile:
    """Appends lines to a metrics file, which at a URL can only be written whole."""

    def __init__(self, place: str | Path, *, after: int = 0):
        """Open a file, and drop what it says of steps beyond `after`.

        An interrupted run logs beyond the checkpoint that is resumed.
        """
        self.place = place
        self._lines: list[str] = []  # all of them, where the file is a URL
        self._written = time.monotonic()
        if not exists(place):
            return
        kept = [line for line in read_metrics(place) if line["step"] <= after]
        lines = [json.dumps(line) + "\n" for line in kept]
        content = "".join(lines).encode()
        if content != read_bytes(place):
            write_bytes(place, content)
        if is_remote(place):
            self._lines = lines

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a line; at a URL it is there after `flush`, or soon."""
        line = json.dumps(values) + "\n"
        if not is_remote(self.place):
            with local_path(self.place).open("a") as file:
                file.write(line)
            return
        self._lines.append(line)
        if time.monotonic() - self._written > REMOTE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Return when every line is where it belongs."""
        if is_remote(self.place):
            write_bytes(self.place, "".join(self._lines).encode())
            self._written = time.monotonic()


def read_metrics(place: str | Path) -> list[dict[str, Any]]:
    """Read a metrics file; a last line that a kill cut short is left out."""
    lines = []
    for text in read_bytes(place).decode().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


PER_SOURCE = ("loss", "accuracy")  # metrics that a line has for each source as well
FlopsPerToken = Callable[[Any], float]  # of a batch's arrays, forward and backward


class MetricsLogger:
    """Collects the steps since the last line and writes the next."""

    def __init__(
        self,
        progress: "tqdm",
        file: MetricsFile | None,
        trackers: Sequence[Tracker],
        *,
        learning_rate: Callable[[int], Any],
        flops_per_token: FlopsPerToken | None,
        skips: SkipLimit,
    ):
        """Begin to watch.

        Args:
            progress: the bar.
            file: the metrics', None on hosts that do not write.
            trackers: which get the numbers as well.
            learning_rate: the rate of a step.
            flops_per_token: of a batch's arrays; None: no MFU.
            skips: told of each step's metrics.
        """
        self.progress, self.file, self.trackers = progress, file, trackers
        self.learning_rate, self.flops_per_token = learning_rate, flops_per_token
        self.skips = skips
        self.peak = peak_flops(jax.devices()[0].device_kind)
        self.began = self.started = time.monotonic()
        self.spent: defaultdict[str, float] = defaultdict(float)  # since the last line
        self.saving = 0.0  # seconds in which checkpoints held the loop up, in all
        self.waiting: list[tuple[int, StepBatch, Metrics]] = []

    def add(self, step: int, batch: StepBatch, metrics: Metrics) -> None:
        """Note a step that is dispatched; its metrics are read with the next line."""
        self.waiting.append((step, batch, metrics))

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        began = time.monotonic()
        yield
        self.spent[what] += time.monotonic() - began

    def timed(
        self, batches: Iterator[tuple[int, StepBatch]]
    ) -> Iterator[tuple[int, StepBatch]]:
        """Yield from the feed, and count how long it made the loop wait."""
        while True:
            with self.spending("input"):
                item = next(batches, None)
            if item is None:
                return
            yield item

    def write(self, extra: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Write a line for the steps that wait, if any do, and return it.

        Args:
            extra: more about the last of these steps.

        Raises:
            FloatingPointError: too many steps in a row were skipped.
        """
        if not self.waiting:
            return {}
        steps = [
            (step, batch.source, jax.device_get(dict(metrics)))
            for step, batch, metrics in self.waiting
        ]
        line = {
            "step": steps[-1][0],
            **self._means(steps),
            "learning_rate": float(self.learning_rate(steps[-1][0] - 1)),
            **self._pace(),
            **device_memory(),
            **(extra or {}),
            "source": steps[-1][1],
            "time": round(time.time(), 3),
        }
        # JSON has no word for them.
        line = {
            name: None if isinstance(x, float) and not math.isfinite(x) else x
            for name, x in line.items()
        }
        self.progress.set_postfix_str(_in_short(line), refresh=False)
        self.progress.update(len(self.waiting))
        if self.file is not None:
            self.file.append(line)
            numbers = {
                name: value
                for name, value in line.items()
                if isinstance(value, int | float) and name not in ("step", "time")
            }
            for tracker in self.trackers:
                tracker.log(steps[-1][0], numbers)
        self.waiting.clear()
        for step, _, values in steps:  # after the line, so that it is seen
            self.skips.check(step, values)
        return line

    def summary(self, name: str) -> str:
        """Say how long the loop took and what checkpoints took of that."""
        seconds = time.monotonic() - self.started
        saving = self.saving + self.spent["saving"]
        return (
            f"{name}: {seconds:.0f} s of training, "
            f"{saving / seconds:.1%} of it held up by checkpoints"
        )

    def _means(self, steps: list[tuple[int, str, dict[str, Any]]]) -> dict[str, float]:
        """Average each metric over the steps not skipped, and count the others."""
        used = [item for item in steps if not item[2].get("skipped", 0)]
        found: dict[str, float] = {}
        names = [name for name in steps[0][2] if name != "skipped"]
        for name in names:
            found[name] = _mean([values[name] for _, _, values in used])
        sources = sorted({source for _, source, _ in steps})
        for name in PER_SOURCE:
            for source in sources if name in names else ():
                own = [values[name] for _, its, values in used if its == source]
                found[f"{name}/{source}"] = _mean(own)
        found["skipped"] = len(steps) - len(used)
        return found

    def _pace(self) -> dict[str, float]:
        """Measure speed, utilisation and waste since the last line."""
        now = time.monotonic()
        seconds = now - self.began
        # What an evaluation takes is not a part of how fast training is.
        training = max(1e-9, seconds - self.spent["evaluation"])
        tokens = sum(batch.num_tokens for _, batch, _ in self.waiting)
        columns = sum(batch.num_columns for _, batch, _ in self.waiting)
        rate = tokens / training  # of this host
        found = {
            "tokens_per_second": round(rate * jax.process_count(), 1),
            "padding": round(1 - tokens / columns, 4),  # share of the columns
            "input_wait": round(self.spent["input"] / training, 4),  # share of the time
            "save_wait": round(self.spent["saving"] / training, 4),
        }
        if self.flops_per_token is not None and self.peak is not None:
            flops = self.flops_per_token(self.waiting[-1][1].arrays) * rate
            found["mfu"] = round(flops / (self.peak * jax.local_device_count()), 4)
        if self.spent["evaluation"]:
            found["evaluation_seconds"] = round(self.spent["evaluation"], 3)
        self.saving += self.spent["saving"]
        self.began = now
        self.spent.clear()
        return found


def progress_bar(name: str, *, start: int, steps: int) -> "tqdm":
    """Make the bar of a stage; of several hosts, the first shows it."""
    from tqdm import tqdm

    return tqdm(
        desc=name,
        initial=start,
        total=steps,
        unit="step",
        disable=jax.process_index() != 0,
        # A log file gets a line now and then, a terminal a live one.
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values)) if values else math.nan


def _in_short(line: Mapping[str, Any]) -> str:
    parts = ["loss -" if line["loss"] is None else f"loss {line['loss']:.4f}"]
    parts.append(f"{line['tokens_per_second'] / 1000:.1f}k tokens/s")
    if "mfu" in line:
        parts.append(f"{line['mfu']:.0%} MFU")
    parts.append(f"{line['padding']:.0%} padding")
    parts.append(f"{line['input_wait']:.0%} waiting for input")
    if line["skipped"]:
        parts.append(f"{line['skipped']} skipped")
    return ", ".join(parts)
