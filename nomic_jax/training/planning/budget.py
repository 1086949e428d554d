"""The settings that keep a step within a memory budget, found by compiling it.

Candidates come in the order of what they compute twice: nothing; a layer's activations,
or all of a layer; and, in microbatches whose results meet in one loss, the forward
pass. A microbatch has tokens enough to fill the device as long as any such fits. No
setting changes the gradient.

For a plan that does not fit, three things make a step smaller: fewer tokens per
microbatch, layers that keep only their matmuls' results or only their inputs, and
parameters split over more devices. Each is tried by itself, the nearest value first,
then all together.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.model.encoder import Remat
from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.planning.abstract import Step, TrainingStage, row_length
from nomic_jax.training.planning.compile import Refusal, over, step_memory
from nomic_jax.training.planning.topology import GIB


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


WANTED = 2  # settings to name


@dataclasses.dataclass(frozen=True)
class Setting:
    """A change of a stage's fields, as the command line takes them."""

    stage: TrainingStage
    options: str


def nearest_fits(
    stage: TrainingStage,
    *,
    devices: int,
    rows: int,
    fits: Callable[[TrainingStage], Any],
) -> list[Setting]:
    """Find the first settings that fit, at most one of each kind and two in all.

    Args:
        stage: that does not fit.
        devices: of the topology.
        rows: of its batch that a device takes in all.
        fits: compiles a stage, and says whether it fits.
    """
    found: list[Setting] = []
    for ladder in ladders(stage, devices=devices, rows=rows):
        for setting in ladder:
            if fits(setting.stage):
                found.append(setting)
                break
        if len(found) == WANTED:
            break
    return found


def ladders(
    stage: TrainingStage, *, devices: int, rows: int
) -> Iterator[Iterator[Setting]]:
    """Yield the ways down, each from the nearest setting to the farthest."""
    smaller = list(_tokens(stage, rows))
    yield (_change(stage, tokens=tokens) for tokens in smaller)
    if stage.memory.remat != "full":
        policies = get_args(Remat)
        stricter = policies[policies.index(stage.memory.remat) + 1 :]
        whole = [_change(stage, remat=remat) for remat in stricter]
        yield iter([*whole, *(_change(stage, tokens=t, remat="full") for t in smaller)])
    wider = list(_wider(stage, devices))
    yield (_change(stage, mesh=mesh) for mesh in wider)
    least = smaller[-1] if smaller else None
    yield (_change(stage, tokens=least, remat="full", mesh=mesh) for mesh in wider)


def _tokens(stage: TrainingStage, rows: int) -> Iterator[int]:
    """Yield smaller numbers of tokens at once: halves, in whole rows, down to one."""
    length, now = row_length(stage), stage.memory.tokens_at_once
    held = rows if now is None else min(rows, now // length)
    while held > 1:
        held = (held + 1) // 2
        yield held * length


def _wider(stage: TrainingStage, devices: int) -> Iterator[MeshConfig]:
    """Yield meshes with larger fsdp axes; none of their sizes is "the rest"."""
    data, fsdp, expert, tensor = stage.mesh.shape(devices)
    while data % 2 == 0:
        data, fsdp = data // 2, fsdp * 2
        yield MeshConfig(data=data, fsdp=fsdp, expert=expert, tensor=tensor)


def _change(
    stage: TrainingStage,
    *,
    tokens: int | None = None,
    remat: Remat | None = None,
    mesh: MeshConfig | None = None,
) -> Setting:
    memory, options = stage.memory, {}
    if tokens is not None:
        memory = dataclasses.replace(memory, tokens_at_once=tokens)
        options["memory.tokens_at_once"] = tokens
    if remat is not None and memory.remat != remat:
        memory = dataclasses.replace(memory, remat=remat)
        options["memory.remat"] = remat
    if mesh is not None:
        sizes = dataclasses.asdict(mesh).items()
        options |= {f"mesh.{axis}": size for axis, size in sizes}
    said = [f"--{stage.name}.{name} {value}" for name, value in options.items()]
    changed = dataclasses.replace(stage, memory=memory, mesh=mesh or stage.mesh)
    return Setting(changed, " ".join(said))
