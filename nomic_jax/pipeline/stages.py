"""What a config file defines: `stages`, a tuple of stages, each with its own name.

The fields of a stage are sections, dataclasses themselves; `--section.field VALUE` sets
every stage that has the field, `--STAGE.section.field VALUE` one. Each stage uses what
an earlier one left.

No option accumulates gradients over batches. The microbatches of one step
(training/microbatches.py; arXiv:2101.06983) give the gradient of the whole batch;
losses of smaller batches, added up, give another one, since rows hold different numbers
of masked tokens and a contrastive loss has fewer negatives.
"""

import contextlib
import dataclasses
import importlib.util
import keyword
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.config import did_you_mean
from nomic_jax.pipeline.kinds import KINDS
from nomic_jax.pipeline.order import Stage
from nomic_jax.training.run_folder import config_hash

RESERVED = ("model",)  # what else a run writes into its folder


def check_stages(stages: Sequence[object]) -> None:
    """Refuse stages that cannot follow one another.

    Raises:
        ValueError: a stage is of an unknown kind, has a name that cannot be a folder
            or an option, or does not fit those before it; every problem is named.
    """
    problems = [] if stages else ["there is none"]
    seen: dict[str, Stage] = {}
    for stage in stages:
        if not isinstance(stage, Stage):
            problems.append(f"{stage!r} is not a stage")
            continue
        name = stage.name
        if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
            problems.append(
                f"{name!r} cannot be a name: letters, digits and _ can, "
                f"{', '.join(RESERVED)} and Python's words cannot"
            )
        if name in seen:
            problems.append(f"two stages are named {name!r}")
        problems += KINDS[type(stage)].misplaced(stage, seen)
        seen[name] = stage
    if problems:
        raise ValueError("the config's stages: " + "; ".join(problems))


_WORD = re.compile(r"\b[\w.]*accum[\w.]*", re.IGNORECASE)


def asks_for_accumulation(text: str) -> bool:
    """Say whether an option, or an error about a keyword, is about accumulation."""
    return _WORD.search(text) is not None


def instead_of_accumulation(*, contrastive: bool) -> str:
    """Say what to set instead.

    Args:
        contrastive: whether a contrastive stage is meant, or may be.
    """
    instead = (
        "gradients are not accumulated over batches: let train.batch_size be the whole "
        "batch of a step, and set memory.tokens_at_once to the tokens that fit a "
        "device; the step takes the batch in microbatches, with its exact gradient"
    )
    why = (
        ". A contrastive loss compares each query with all documents of the batch at "
        "once: accumulated, smaller batches would have fewer negatives"
    )
    return instead + (why if contrastive else "")


def load_stages(path: Path) -> tuple[Stage, ...]:
    """Run a config file and return the stages it defines.

    It may import those next to it, `import mlm`, and build on their stages.

    Raises:
        ValueError: there is no such file, or what it defines is not a run.
    """
    if not path.is_file():
        there = [str(p) for p in sorted(path.parent.glob("*.py"))]
        hint = did_you_mean(str(path), there) if there else f"{path.parent} holds none"
        raise ValueError(f"no config {path}: {hint}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{path}:{lines[-1]}" if lines else path
        said = f"{place}: {type(error).__name__}: {error}"
        if isinstance(error, TypeError) and asks_for_accumulation(str(error)):
            said += f"; {instead_of_accumulation(contrastive=True)}"
        raise ValueError(said) from error
    stages = getattr(module, "stages", None)
    if not isinstance(stages, tuple):
        raise ValueError(f"{path} must define `stages`, a tuple of stages")
    check_stages(stages)
    return stages


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a file import its neighbours; a file of another folder gets its own ones.

    No compiled files are left there: a config that was just edited is read again.
    """
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    known, writes = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(folder)
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == Path(folder):
                del sys.modules[name]


def resolve(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Return each stage's kind, its fields, and the digest of the stage before it.

    A stage's result depends on those before it, so what its folder is known by must.
    """
    resolved: dict[str, dict[str, Any]] = {}
    before = ""
    for stage in stages:
        config = {"kind": KINDS[type(stage)].name, **dataclasses.asdict(stage)}
        resolved[stage.name] = {**config, "after": before}
        before = config_hash(resolved[stage.name])
    return resolved
