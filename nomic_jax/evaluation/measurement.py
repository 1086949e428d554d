"""Measure an embedder on tasks: every length, dimension and precision, resumable.

Texts are embedded once at full width. A Matryoshka dimension is their first entries,
scaled to unit length (Kusupati et al. 2022, arXiv:2205.13147), and codes are made of
those. All lengths and prompts share one set of weights.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from nomic_jax.config import NOMIC_PROMPTS
from nomic_jax.evaluation.config import EvaluationConfig, Precision, at_precision
from nomic_jax.evaluation.kinds.registry import KINDS, Task
from nomic_jax.evaluation.prompts import completed
from nomic_jax.evaluation.records import Side
from nomic_jax.evaluation.results import (
    Figures,
    Measured,
    Results,
    described,
    draw,
    resumed,
    write,
)
from nomic_jax.inference.embedder import Embedder

logger = logging.getLogger(__name__)


def all_dims(embedder: Embedder) -> tuple[int, ...]:
    """Return the dimensions an embedder was trained for, its full width first."""
    dims = {embedder.width, *embedder.config.matryoshka_dims}
    return tuple(sorted(dims, reverse=True))


def check_dims(embedder: Embedder, dims: Sequence[int]) -> None:
    """Refuse dimensions that the model was not trained for.

    Raises:
        ValueError: there is one.
    """
    known = all_dims(embedder)
    if wrong := [dim for dim in dims if dim not in known]:
        raise ValueError(
            f"dims {', '.join(map(str, wrong))} are not the model's, which was trained "
            f"for {', '.join(map(str, known))}"
        )


def at_lengths(
    embedder: Embedder,
    lengths: Sequence[int],
    *,
    rotary_scaling_factor: float | None = None,
) -> dict[int, Embedder]:
    """Return embedders of the same weights that cut texts at each length.

    Args:
        embedder: whose weights they share.
        lengths: tokens, special ones included.
        rotary_scaling_factor: alpha of Dynamic NTK; None keeps the model's.

    Raises:
        ValueError: the model cannot take a length.
    """
    model = embedder.model
    if rotary_scaling_factor is not None:
        model = jax.tree.map(lambda leaf: leaf, model)  # its arrays are shared
        model.config = dataclasses.replace(
            model.config, rope_scaling_factor=rotary_scaling_factor
        )
    return {
        length: embedder.replaced(
            model=model, config=dataclasses.replace(embedder.config, max_length=length)
        )
        for length in lengths
    }


def with_all_prompts(embedder: Embedder) -> Embedder:
    """Return an embedder that knows the prompts of all tasks, as `completed` has them.

    A model that has no prompt for a task embeds its texts as they stand.
    """
    prompts = embedder.config.prompts
    if prompts.keys() >= (every := completed(prompts)).keys():
        return embedder
    missing = [name for name in NOMIC_PROMPTS if name not in prompts]
    if missing:
        names = ", ".join(missing)
        logger.warning("the model has no prompt for %s: see the prefixes", names)
    return embedder.replaced(config=dataclasses.replace(embedder.config, prompts=every))


def measure(
    task: Task,
    embedder: Embedder,
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[Precision] = ("float32",),
    progress: bool = False,
) -> tuple[Figures, ...]:
    """Measure an embedder on a task.

    Args:
        task: as `open_tasks` reads it.
        embedder: its maximum length is where texts are cut.
        dims: of the vectors; None: the full width alone.
        precisions: of the vectors.
        progress: show a bar while texts are embedded.

    Returns:
        Figures of each dimension at each precision, in this order; what the embeddings
        leave undefined has its problem instead.

    Raises:
        ValueError: a dimension is not the model's, or embeddings are not finite.
    """
    dims = (embedder.width,) if dims is None else tuple(dims)
    check_dims(embedder, dims)
    embedder = with_all_prompts(embedder)
    pooled = [_embedded(task, side, embedder, progress) for side in task.sides]
    return figures(task, pooled, dims=dims, precisions=precisions)


def figures(
    task: Task,
    pooled: Sequence[Float32[np.ndarray, "_ width"]],
    *,
    dims: Sequence[int],
    precisions: Sequence[Precision] = ("float32",),
) -> tuple[Figures, ...]:
    """Score the embeddings of a task's sides; see `measure`.

    Args:
        task: what they are of.
        pooled: the embeddings of each side, of full width and any length.
        dims: of the vectors, each at most the width.
        precisions: of the vectors.
    """
    kind, found = KINDS[task.kind], []
    calibrating = [side.calibrates for side in task.sides]
    for dim in dims:
        cut = [vectors[:, :dim] for vectors in pooled]
        if kind.unit_length:
            cut = [_unit(vectors) for vectors in cut]
        for precision in precisions:
            codes = at_precision(
                cut, calibrating, precision, decoded=not kind.unit_length
            )
            if precision == "int8" and kind.unit_length:
                codes = [_unit(each) for each in codes]
            try:
                figure = Figures(dim, precision, _scored(task, codes))
            except ValueError as error:
                where = f"task {task.name!r} at {dim} dimensions, {precision}"
                figure = Figures(dim, precision, {}, f"{where}: {error}")
            found.append(figure)
    return tuple(found)


def _scored(task: Task, codes: Sequence[np.ndarray]) -> dict[str, float]:
    """Score what embeddings are worth.

    Raises:
        ValueError: a metric is not defined for them.
    """
    metrics = KINDS[task.kind].score(task.data, *codes)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: the embeddings leave it undefined")
    return metrics


def metrics_of(task: Task, embedder: Embedder) -> dict[str, float]:
    """Measure an embedder on a task at full width and precision: values by metric.

    Raises:
        ValueError: as `measure` has it, or the embeddings leave a metric undefined.
    """
    (found,) = measure(task, embedder)
    if found.problem is not None:
        raise ValueError(found.problem)
    return dict(found.metrics)


def _embedded(
    task: Task, side: Side, embedder: Embedder, progress: bool
) -> Float32[np.ndarray, "texts width"]:
    vectors = embedder.encode(
        side.texts, task=side.prompt_name, normalize=False, progress=progress
    )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"task {task.name!r}: {int((~finite).sum())} of {len(vectors)} embeddings "
            f"are not finite, the first that of text {int(np.argmin(finite))}; look at "
            "the model's weights and the type of matmuls"
        )
    return vectors


def _unit(vectors: Float32[np.ndarray, "n E"]) -> Float32[np.ndarray, "n E"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.float32(1e-12))


LIBRARIES = ("nomic-jax", "jax", "numpy", "scipy", "scikit-learn")
LIBRARIES += ("pytrec-eval-terrier",)  # whose versions stand next to the figures


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
