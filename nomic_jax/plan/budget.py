"""The settings that keep a step within a budget of memory, found by compiling it.

In the order of what they repeat: nothing; a layer's activations, or all of a layer;
and, in microbatches whose results meet in one loss, the forward pass. A microbatch has
tokens enough to fill the device as long as there is any that fits. No setting changes
the gradient.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import get_args

from nomic_jax.model.encoder import Remat
from nomic_jax.plan.abstract import Step
from nomic_jax.plan.assumed import TrainingStage, row_length
from nomic_jax.plan.chips import GIB
from nomic_jax.plan.compiled import Refusal, over, step_memory
from nomic_jax.training.placement import MemoryConfig


def within_budget(
    stage: TrainingStage,
    step_of: Callable[[TrainingStage], Step],
    *,
    enough: int,
    say: Callable[[str], None],
) -> MemoryConfig:
    """Return the first settings whose compiled step needs no more than the budget.

    Args:
        stage: with a budget.
        step_of: lays out the step of a stage with other settings.
        enough: tokens that fill a device.
        say: hears of each step that is compiled.

    Raises:
        ValueError: no settings fit, with what the least of them need.
    """
    budget, refused = stage.memory.budget, None
    assert budget is not None
    step = step_of(stage)
    for memory in candidates(
        step.rows, row_length(stage), enough=enough, twice=step.twice
    ):
        needed = step_memory(step_of(dataclasses.replace(stage, memory=memory)))
        if not isinstance(needed, Refusal) and needed.total > budget * GIB:
            needed = over(needed, budget * GIB)
        settings = f"tokens_at_once={memory.tokens_at_once}, remat={memory.remat}"
        if not isinstance(needed, Refusal):
            total = f"{needed.total / GIB:.2f} of {budget:.2f} GiB"
            say(f"{stage.name}: {settings} needs {total}")
            return memory
        say(f"{stage.name}: {settings} does not fit: {needed.said}")
        refused = needed
    assert refused is not None
    raise ValueError(
        f"{stage.name}: memory.budget={budget} GiB holds no step, not even of one row "
        f"at once: {refused.said}; raise it, shorten the rows, or split the parameters "
        "by mesh.fsdp"
    )


def enough_tokens(platform: str) -> int:
    """Return how many tokens fill a device: a processor's cache, or lanes."""
    return 2048 if platform == "cpu" else 16_384


def candidates(
    rows: int, row_length: int, *, enough: int, twice: bool
) -> Iterator[MemoryConfig]:
    """Yield settings, those that repeat less first, then those that need less.

    Args:
        rows: that a device takes in all.
        row_length: tokens of one.
        enough: tokens that fill a device.
        twice: microbatches compute the forward pass again.
    """
    policies: tuple[Remat, ...] = get_args(Remat)
    sizes = [rows]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    tokens = [size * row_length for size in sizes[1:]]
    large = [each for each in tokens if each >= enough]
    if twice:
        yield from (MemoryConfig(remat=remat) for remat in policies)
    for remat in policies:
        if not twice:
            yield MemoryConfig(remat=remat)
        yield from (MemoryConfig(tokens_at_once=each, remat=remat) for each in large)
    for each in tokens[len(large) :]:
        yield from (MemoryConfig(tokens_at_once=each, remat=r) for r in policies)
