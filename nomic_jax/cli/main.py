"""The entry points: `nomic-jax`, and what `train.py` calls.

Exit status: 0 done, 2 the input was wrong, 1 a fault, 75 stopped by a signal after the
state was saved. What a command needs is imported when it runs, so `--help` is quick.
Before anything else the C library is told to keep freed memory.
"""

import argparse
import ctypes
import dataclasses
import logging
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nomic_jax.cli.curate import (
    FilterPairs,
    MineNegatives,
    filter_pairs,
    mine_negatives,
)
from nomic_jax.cli.evaluate import Attention, Evaluate, evaluate
from nomic_jax.cli.glue import Glue, glue
from nomic_jax.cli.plan import Plan, plan
from nomic_jax.cli.prepare import Prepare, prepare

# Of glibc's malloc.h, what `mallopt` sets.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, for the next step to take.

    A step on a processor takes gigabytes of temporaries from the system and gives them
    back, and the system clears each page again. glibc keeps what is freed in one heap
    if it is told not to shrink it; not what it maps apart, large blocks and those of
    further threads. To be called before JAX is imported, whose threads begin then.
    Allocators other than glibc's are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    allocator = ctypes.CDLL(None)
    for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
        allocator.mallopt(setting, value)


WRONG_INPUT, FAULT = 2, 1
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Dtype = Literal["float32", "bfloat16"] | None
Factor = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed one text a line, of standard input or of a file, as unit vectors."""

    model: Model  # folder or hub id
    task: str  # whose prefix goes before each text: search_document, clustering, ...
    input: File = None  # .jsonl, or one text a line; None: standard input
    output: File = None  # .npy, .jsonl or .parquet; None: .npy to standard output
    column: str = "text"  # of the text in JSON Lines
    dim: Number = None  # entries of a Matryoshka vector; None: the full width
    max_length: Number = None  # tokens of the longest text; None: the model's
    rotary_scaling_factor: Factor = None  # of Dynamic NTK, for longer texts
    on_too_long: Literal["cut", "error"] = "cut"  # what texts over the maximum meet
    dtype: Dtype = None  # of matmuls; None: float32 on CPU, bfloat16 elsewhere
    attention: Attention = "auto"  # backend; see docs/attention.md


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Print what a model would put in place of each mask, and how probable it is."""

    model: Model  # folder or hub id of a model that has an MLM head
    # with the model's own mask, [MASK] or <mask>; -: a text a line of standard input
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    top: int = 5  # candidates of each mask


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a model against its fingerprint and, where it is installed, PyTorch."""

    model: Model  # folder or hub id


COMMANDS = (
    Embed
    | Evaluate
    | FillMask
    | FilterPairs
    | Glue
    | MineNegatives
    | Plan
    | Prepare
    | Verify
)


def main() -> None:
    """Run `nomic-jax` on the process's arguments and exit."""
    sys.exit(nomic_jax(sys.argv[1:]))


def nomic_jax(arguments: Sequence[str]) -> int:
    """Run one subcommand and return the exit status."""
    commands, given = COMMANDS, list(arguments)
    fields: list[str] = []  # of a config, which only its stages know
    if given[:1] == ["plan"]:
        chosen, fields = tyro.cli(
            commands, prog="nomic-jax", args=given, return_unknown_args=True
        )
    else:
        chosen = tyro.cli(commands, prog="nomic-jax", args=given)

    def work() -> int:
        match chosen:
            case Embed():
                return embed(chosen)
            case Evaluate():
                return evaluate(chosen)
            case FillMask():
                return fill_mask(chosen)
            case FilterPairs():
                return filter_pairs(chosen)
            case Glue():
                return glue(chosen)
            case MineNegatives():
                return mine_negatives(chosen)
            case Plan():
                return plan(chosen, fields)
            case Prepare():
                return prepare(chosen)
            case Verify():
                return verify(chosen)

    return guarded(work)


def guarded(work: Callable[[], int]) -> int:
    """Turn a `ValueError`, wrong input, into a line on standard error and status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nomic_jax").setLevel(logging.INFO)
    try:
        return work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except FloatingPointError as error:  # training that came to nothing
        print(f"error: {error}", file=sys.stderr)
        return FAULT


def embed(options: Embed) -> int:
    """Run `nomic-jax embed`."""
    from nomic_jax.cli.embed import check_output, read_input, write_vectors

    check_output(options.output)
    texts = read_input(options.input, column=options.column)

    from nomic_jax.inference.embedder import Embedder

    embedder = Embedder.from_pretrained(
        options.model,
        max_length=options.max_length,
        rotary_scaling_factor=options.rotary_scaling_factor,
        dtype=options.dtype,
        attention=options.attention,
    )
    vectors = embedder.encode(
        texts,
        task=options.task,
        dim=options.dim,
        on_too_long=options.on_too_long,
        progress=True,
    )
    write_vectors(options.output, texts, vectors)
    return 0


def fill_mask(options: FillMask) -> int:
    """Run `nomic-jax fill-mask`: a line for each candidate."""
    from nomic_jax.inference.masked_tokens import filled_lines

    for line in filled_lines(options.model, options.text, top=options.top):
        print(line, flush=True)
    return 0


def verify(options: Verify) -> int:
    """Run `nomic-jax verify`: a line for each comparison, status 1 if one fails."""
    from nomic_jax.inference.verify import comparisons

    failed = False
    for comparison in comparisons(options.model):
        print(comparison, flush=True)
        failed |= not comparison.passed
    return int(failed)


def train(arguments: Sequence[str]) -> int:
    """Run `train.py` and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train what a config says; the same command resumes.",
        epilog="--section.field VALUE sets a field of every stage that has it, "
        "--STAGE.section.field VALUE of one stage; --config FILE --help lists them.",
        allow_abbrev=False,
        add_help="--config" not in " ".join(arguments),
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="such as configs/quickstart.py"
    )
    parser.add_argument("--out", help="the run's folder or URL (default: runs/NAME)")
    several = parser.add_argument_group(
        "several hosts",
        "found on Cloud TPU, GKE, SLURM and Open MPI; elsewhere all three are needed",
    )
    several.add_argument(
        "--coordinator", default="", help="ADDRESS:PORT of the first host, a free port"
    )
    several.add_argument(
        "--hosts", type=int, default=0, help="their number; 1: this machine alone"
    )
    several.add_argument(
        "--host", type=int, default=-1, help="this host's number, from 0"
    )
    options, rest = parser.parse_known_args(arguments)

    def work() -> int:
        keep_freed_memory()

        from nomic_jax.pipeline.overrides import override
        from nomic_jax.pipeline.stages import load_stages

        stages = override(load_stages(options.config), rest)
        # The config says where texts are cut: no need to say it at each encoding.
        logging.getLogger("nomic_jax.inference.batching").setLevel(logging.ERROR)

        from nomic_jax.distributed import hosts
        from nomic_jax.pipeline.runner import run

        hosts.start(options.coordinator, options.hosts, options.host)
        run(stages, options.out or Path("runs") / options.config.stem)
        return 0

    return guarded(work)


if __name__ == "__main__":
    main()
