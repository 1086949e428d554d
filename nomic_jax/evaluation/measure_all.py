"""Measure an embedder on many tasks at many lengths, and go on where it was stopped."""

import contextlib
import importlib.metadata
import sys
import time
from collections.abc import Sequence

from nomic_jax.embedder import Embedder
from nomic_jax.evaluation.embedders import (
    all_dims,
    at_lengths,
    check_dims,
    with_all_prompts,
)
from nomic_jax.evaluation.figures_folder import (
    Measured,
    Results,
    described,
    resumed,
    write,
)
from nomic_jax.evaluation.kinds import Task
from nomic_jax.evaluation.measure import measure
from nomic_jax.evaluation.plots import draw
from nomic_jax.evaluation.quantization import Precision
from nomic_jax.own_devices import digest

LIBRARIES = ("nomic-jax", "jax", "numpy", "scipy", "scikit-learn")
LIBRARIES += ("pytrec-eval-terrier",)  # whose versions stand beside the figures


def measure_all(
    embedder: Embedder,
    tasks: Sequence[Task],
    *,
    source: str,
    out: str | None = None,
    dims: Sequence[int] = (),
    lengths: Sequence[int] = (),
    precisions: Sequence[Precision] = ("float32",),
    rotary_scaling_factor: float | None = None,
    progress: bool = False,
) -> Results:
    """Measure an embedder on tasks, and tell what was done on standard error.

    Args:
        embedder: whose model is whole on this host's devices.
        tasks: as `open_tasks` reads them.
        source: where the model is from, for the reader of the results.
        out: folder of results, tables and plots; what it holds of the same model and
            options is not measured again. None: nothing is written.
        dims: of the vectors; none given: all the model was trained for.
        lengths: where texts are cut, in tokens; none given: the embedder's.
        precisions: of the vectors.
        rotary_scaling_factor: alpha of Dynamic NTK; None keeps the model's.
        progress: show a bar while texts are embedded.

    Returns:
        The results, with those that the folder held before.

    Raises:
        ValueError: the model cannot take a dimension or a length, or the folder is of
            another evaluation; nothing was measured then.
    """
    embedder = with_all_prompts(embedder)
    dims = tuple(dims) or all_dims(embedder)
    check_dims(embedder, dims)
    embedders = at_lengths(
        embedder,
        tuple(lengths) or (embedder.config.max_length,),
        rotary_scaling_factor=rotary_scaling_factor,
    )
    results = Results(
        model={
            "source": source,
            "weights": digest(embedder.model),
            "pooling": embedder.config.pooling,
            "layer_norm": embedder.config.layer_norm,
        },
        options={
            "dims": list(dims),
            "precisions": list(precisions),
            "rotary_scaling_factor": rotary_scaling_factor,
            "dtype": str(embedder.model.dtype),
        },
        versions=_versions(),
        tasks={task.name: described(task, embedder.config) for task in tasks},
    )
    if out is not None:
        results = resumed(results, out)
    prompts = embedder.config.prompts
    used = sorted({side.prompt for task in tasks for side in task.sides})
    _say("prefixes: " + ", ".join(f"{name} {prompts[name]!r}" for name in used))
    for task in tasks:
        for length, own in embedders.items():
            if results.has(task.name, length):
                continue
            start = time.perf_counter()
            figures = measure(
                task, own, dims=dims, precisions=precisions, progress=progress
            )
            seconds = round(time.perf_counter() - start, 1)
            measured = Measured(task.name, length, seconds, figures)
            results = results.with_measured(measured)
            _say(_line(task, measured))
            if out is not None:
                draw(results, out)
                write(results, out)  # last: what is in it is not measured again
    return results


def _versions() -> dict[str, str]:
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
    value = measured.figures[0].metrics[task.main]
    return (
        f"{task.name} at {measured.length} tokens: {task.main} {value:.4f} in "
        f"{measured.seconds} s ({counted})"
    )
