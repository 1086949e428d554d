"""Watching a run: one line of metrics for some steps, on disk, in trackers, in a bar.

The line holds the means over its steps, per source where a step's batch is of one, and
how the time was spent.
"""

import contextlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from nomic_jax.batch import StepBatch
from nomic_jax.training.finite import SkipLimit
from nomic_jax.training.flops import device_memory, peak_flops
from nomic_jax.training.run_folder import MetricsFile
from nomic_jax.training.steps import Metrics
from nomic_jax.training.trackers import Tracker

if TYPE_CHECKING:
    from tqdm import tqdm

PER_SOURCE = ("loss", "accuracy")  # metrics that a line has for each source as well

FlopsPerToken = Callable[[Any], float]  # of a batch's arrays, forward and backward


class Watch:
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
        # What an evaluation takes is no part of how fast training is.
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
