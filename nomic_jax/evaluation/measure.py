"""Measure an embedder on a task: at every dimension and precision from one embedding.

Texts are embedded once at full width. A Matryoshka dimension is their first entries,
scaled to unit length (Kusupati et al. 2022, arXiv:2205.13147), and codes are made of
those.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax.embedder import Embedder
from nomic_jax.evaluation.embedders import check_dims, with_all_prompts
from nomic_jax.evaluation.kinds import KINDS, Task
from nomic_jax.evaluation.quantization import Precision, at_precision
from nomic_jax.evaluation.sides import Side


@dataclasses.dataclass(frozen=True)
class Figures:
    """How good embeddings of a dimension and precision are: values by metric."""

    dim: int
    precision: str
    metrics: Mapping[str, float]  # none where there is a problem
    problem: str | None = None  # that leaves them undefined


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
