"""Measure an embedder on many tasks at many lengths, and go on where it was stopped."""

import contextlib
import importlib.metadata
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nomic_jax.embedder import Embedder
from nomic_jax.evaluation.embedders import (
    all_dims,
    at_lengths,
    check_dims,
    with_all_prompts,
)
from nomic_jax.evaluation.figures_folder import described, resumed, write
from nomic_jax.evaluation.kinds import Task
from nomic_jax.evaluation.measure import Figures, measure
from nomic_jax.evaluation.measured import Measured, Results
from nomic_jax.evaluation.plots import draw
from nomic_jax.evaluation.stage import EvaluationConfig

LIBRARIES = ("nomic-jax", "jax", "numpy", "scipy", "scikit-learn")
LIBRARIES += ("pytrec-eval-terrier",)  # whose versions stand beside the figures


def measure_all(
    embedder: Embedder,
    tasks: Sequence[Task],
    config: EvaluationConfig,
    *,
    source: str,
    out: str | None = None,
    progress: bool = False,
) -> Results:
    """Measure an embedder on tasks, and tell what was done on standard error.

    Args:
        embedder: whose model is whole on this host's devices.
        tasks: as `open_tasks` reads them.
        config: dimensions, lengths and precisions; its own tasks are not read.
        source: where the model is from, for the reader of the results.
        out: folder of results, tables and plots; what it holds of the same model and
            options is not measured again. None: nothing is written.
        progress: show a bar while texts are embedded.

    Returns:
        The results, with those that the folder held before. What the embeddings leave
        undefined is among its `problems`.

    Raises:
        ValueError: the model cannot take a dimension or a length, or the folder is of
            another evaluation; nothing was measured then.
    """
    model = {"source": source, **_identity(embedder)}
    embedder = with_all_prompts(embedder)
    dims = config.dims or all_dims(embedder)
    check_dims(embedder, dims)
    embedders = at_lengths(
        embedder,
        config.lengths or (embedder.config.max_length,),
        rotary_scaling_factor=config.rotary_scaling_factor,
    )
    results = Results(
        model=model,
        options={
            "dims": list(dims),
            "precisions": list(config.precisions),
            "rotary_scaling_factor": config.rotary_scaling_factor,
        },
        tasks={task.name: described(task, embedder.config) for task in tasks},
    )
    if out is not None:
        results = resumed(results, out)
    prompts = embedder.config.prompts
    used = sorted({side.prompt_name for task in tasks for side in task.sides})
    _say("prefixes: " + ", ".join(f"{name} {prompts[name]!r}" for name in used))
    for task in tasks:
        for length, own in embedders.items():
            if results.has(task.name, length):
                continue
            start = time.perf_counter()
            try:
                figures = measure(
                    task,
                    own,
                    dims=dims,
                    precisions=config.precisions,
                    progress=progress,
                )
            except ValueError as error:  # of this task: the others can be measured
                figures = tuple(
                    Figures(dim, precision, {}, str(error))
                    for dim in dims
                    for precision in config.precisions
                )
            seconds = round(time.perf_counter() - start, 1)
            measured = Measured(task.name, length, seconds, figures, _versions())
            results = results.with_measured(measured)
            _say(_line(task, measured))
            if out is not None:
                write(results, out)
    if out is not None:
        write(results, out)
        draw(results, out)
    return results


def _identity(embedder: Embedder) -> dict[str, Any]:
    """Return what tells models apart; lengths and prompts are of each task."""
    found = embedder.fingerprint()
    apart = ("max_length", "prompts")
    conventions = {k: v for k, v in found["embedding"].items() if k not in apart}
    return {**found, "embedding": conventions}


def _versions() -> Mapping[str, str]:
    found = {}
    for name in LIBRARIES:
        # What runs from a folder of sources has none.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _line(task: Task, measured: Measured) -> str:
    counted = ", ".join(f"{number:,} {what}" for what, number in task.counts.items())
    first = measured.figures[0]
    value = first.problem or f"{task.main} {first.metrics[task.main]:.4f}"
    return (
        f"{task.name} at {measured.length} tokens: {value} in {measured.seconds} s "
        f"({counted})"
    )
