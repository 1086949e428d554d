"""The entry points: `nomic-jax`, and what `train.py` calls.

Exit status: 0 done, 2 the input was wrong, 1 a fault, 75 stopped by a signal after the
state was saved. What a command needs is imported when it runs, so `--help` is quick.
Before anything else the C library is told to keep freed memory.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import logging
import operator
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from nomic_jax.cli.embed import Embed, embed
from nomic_jax.cli.evaluate import Evaluate, evaluate
from nomic_jax.cli.fill_mask import FillMask, fill_mask
from nomic_jax.cli.filter_pairs import FilterPairs, filter_pairs
from nomic_jax.cli.glue import Glue, glue
from nomic_jax.cli.mine_negatives import MineNegatives, mine_negatives
from nomic_jax.cli.plan import Plan, plan
from nomic_jax.cli.prepare import Prepare, prepare
from nomic_jax.cli.verify import Verify, verify

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


# Every command: the options that its arguments make, and what runs on them.
COMMANDS: Mapping[type, Callable[..., int]] = {
    Embed: embed,
    Evaluate: evaluate,
    FillMask: fill_mask,
    FilterPairs: filter_pairs,
    Glue: glue,
    MineNegatives: mine_negatives,
    Plan: plan,
    Prepare: prepare,
    Verify: verify,
}


def main() -> None:
    """Run `nomic-jax` on the process's arguments and exit."""
    sys.exit(nomic_jax(sys.argv[1:]))


def nomic_jax(arguments: Sequence[str]) -> int:
    """Run one subcommand and return the exit status."""
    commands: Any = functools.reduce(operator.or_, COMMANDS)
    given = list(arguments)
    if given[:1] == ["plan"]:  # the fields of a config are known to its stages alone
        chosen, *fields = tyro.cli(
            commands, prog="nomic-jax", args=given, return_unknown_args=True
        )
    else:
        chosen, fields = tyro.cli(commands, prog="nomic-jax", args=given), ()
    with reported() as status:
        status.code = COMMANDS[type(chosen)](chosen, *fields)
    return status.code


@dataclasses.dataclass
class ExitStatus:
    """What a command ends with."""

    code: int = 0


@contextlib.contextmanager
def reported() -> Iterator[ExitStatus]:
    """Turn a `ValueError`, wrong input, into a line on standard error and status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nomic_jax").setLevel(logging.INFO)
    status = ExitStatus()
    try:
        yield status
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        status.code = WRONG_INPUT
    except FloatingPointError as error:  # training that came to nothing
        print(f"error: {error}", file=sys.stderr)
        status.code = FAULT


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

    with reported() as status:
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
    return status.code


if __name__ == "__main__":
    main()
