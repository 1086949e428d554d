"""The command `nomic-jax evaluate`."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import tyro

from nomic_jax.cli.options import Attention, Dtype, Fraction, Model

Tasks = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND:PLACE ...")]
Numbers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
Folder = Annotated[str | None, tyro.conf.arg(metavar="DIR")]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a model on tasks, at each dimension, length and precision.

    Kinds of tasks: retrieval:FOLDER (BEIR's layout), sts:FILE, classification:FOLDER,
    clustering:FILE, pair_classification:FILE, reranking:FILE, loco:FOLDER,
    summaries:FILE. Folders take :SPLIT behind them. Prefixes and scaling to unit length
    are those of Nomic's paper. With --out the same command goes on where it was
    stopped, and further tasks and lengths are added.
    """

    model: Model  # folder or hub id
    tasks: Tasks  # such as retrieval:beir/scifact sts:stsb-dev.jsonl
    dims: Numbers = ()  # of vectors; none given: all the model was trained for
    lengths: Numbers = ()  # where texts are cut, in tokens; none given: the model's
    # of vectors; int8 and binary are compared next to float32
    precisions: tuple[Literal["float32", "int8", "binary"], ...] = ("float32",)
    out: Folder = None  # for results.json, results.md and plots; None: printed only
    rotary_scaling_factor: Fraction = None  # of Dynamic NTK, for lengths not trained on
    # of matmuls; None: float32 on CPU, bfloat16 elsewhere
    dtype: Dtype = None
    # what computes attention; see docs/attention.md
    attention: Attention = "auto"


def evaluate(options: Evaluate) -> int:
    """Run `nomic-jax evaluate`: tables on standard output, and in the folder.

    Raises:
        ValueError: a task, the model or an option is wrong, the folder is of another
            evaluation, or a figure is undefined; all others are there then.
    """
    from nomic_jax.evaluation.config import EvaluationConfig
    from nomic_jax.evaluation.kinds.registry import open_tasks
    from nomic_jax.evaluation.results import tables
    from nomic_jax.storage import check_out

    if not options.tasks:
        raise ValueError("give at least one task, as in --tasks sts:stsb-dev.jsonl")
    config = EvaluationConfig(
        tasks=options.tasks,
        dims=options.dims,
        lengths=options.lengths,
        precisions=options.precisions,
        rotary_scaling_factor=options.rotary_scaling_factor,
    )
    if options.out is not None:
        check_out(options.out)
    tasks = open_tasks(options.tasks)

    from nomic_jax.evaluation.measurement import measure_all
    from nomic_jax.inference.embedder import Embedder

    embedder = Embedder.from_pretrained(
        options.model, dtype=options.dtype, attention=options.attention
    )
    with _no_word_of_cuts():
        results = measure_all(
            embedder,
            tasks,
            config,
            source=options.model,
            out=options.out,
            progress=sys.stderr.isatty(),
        )
    names = [task.name for task in tasks]
    print(tables(results, names), flush=True)
    if problems := results.problems(names):
        raise ValueError("; ".join(problems))
    return 0


@contextlib.contextmanager
def _no_word_of_cuts() -> Iterator[None]:
    """Leave out that texts were cut: tables say where, and each encoding would."""
    logger = logging.getLogger("nomic_jax.inference.batching")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
