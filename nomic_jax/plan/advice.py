"""The nearest settings that fit: candidates one after another, really compiled.

Three things make a step smaller: fewer tokens at once, layers that keep their products
with weights, or their inputs alone, and parameters split over more devices. Each is
tried by itself, the nearest value first, then all that can be had together.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

from nomic_jax.model.encoder import Remat
from nomic_jax.plan.assumed import TrainingStage, row_length
from nomic_jax.sharding import MeshConfig

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
