"""A stage's step, compiled for devices that are not here: what it needs, or a refusal.

The compiler knows best what fits: it refuses a program for which the device's memory
does not suffice, and says by how much.
"""

import dataclasses
import math
import re
from typing import Any

import jax

from nomic_jax.plan.abstract import Step
from nomic_jax.plan.arithmetic import product_flops
from nomic_jax.plan.chips import GIB, Chip
from nomic_jax.plan.collectives import Collective, find_collectives
from nomic_jax.plan.memory_traffic import memory_traffic
from nomic_jax.plan.products import compiled_flops
from nomic_jax.plan.program import read_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes of one device's memory by what they hold."""

    parameters: float  # of frozen encoders too
    optimizer: float
    batch: float
    temporaries: float  # activations, gradients, what passes between instructions
    program: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(dataclasses.asdict(self).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of a step."""

    memory: DeviceMemory
    flops: float  # of all products on all devices, of kernels' too
    traffic: float  # bytes to and from one device's memory
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a step does not fit a device."""

    said: str  # the sizes


def compile_step(step: Step, chip: Chip) -> Compiled | Refusal:
    """Compile a step for its devices.

    Args:
        step: whose arrays are shapes with shardings.
        chip: what the devices are.

    Raises:
        ValueError: the compiler refuses it for another reason than memory.
    """
    traced = step.update.trace(step.state, step.batch, *step.frozen)
    compiled = _compiled(traced)
    if isinstance(compiled, Refusal):
        return compiled
    memory = _memory(step, compiled)
    # A GPU's compiler leaves that to be found out.
    if memory.total > chip.memory:
        return over(memory, chip.memory)
    program = read_program(compiled.as_text())
    devices = 1 if step.mesh is None else step.mesh.size
    # Other compilers call libraries, whose products their programs do not show.
    counted = compiled_flops(program) if chip.platform == "tpu" else None
    return Compiled(
        memory=memory,
        flops=product_flops(traced.jaxpr.jaxpr)
        if counted is None
        else devices * counted,
        traffic=memory_traffic(program),
        collectives=tuple(find_collectives(program, devices=devices)),
    )


def step_memory(step: Step) -> DeviceMemory | Refusal:
    """Compile a step for its devices, and say what one of them must hold.

    Raises:
        ValueError: the compiler refuses it for another reason than memory.
    """
    compiled = _compiled(step.update.trace(step.state, step.batch, *step.frozen))
    return compiled if isinstance(compiled, Refusal) else _memory(step, compiled)


def over(memory: DeviceMemory, available: float) -> Refusal:
    """Say what is needed of how many bytes there are."""
    return Refusal(
        f"{memory.total / GIB:.2f} GiB needed ({listed(memory)}) of "
        f"{available / GIB:.2f} GiB"
    )


def _compiled(traced: Any) -> Any:
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return _refusal(str(error))


def _memory(step: Step, compiled: Any) -> DeviceMemory:
    stated, state = compiled.memory_analysis(), step.state
    if stated is None:
        raise ValueError("the compiler does not say what memory the step needs")
    return DeviceMemory(
        parameters=device_bytes((state.model, step.frozen)),
        optimizer=device_bytes((state.optimizer, state.step)),
        batch=device_bytes(step.batch),
        temporaries=stated.temp_size_in_bytes
        + stated.output_size_in_bytes
        - stated.alias_size_in_bytes,
        program=stated.generated_code_size_in_bytes,
    )


def device_bytes(tree: Any) -> float:
    """Return the bytes that one device holds of arrays, by their shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def listed(memory: DeviceMemory) -> str:
    """List what a device's memory holds, in GiB."""
    return ", ".join(
        f"{name} {size / GIB:.2f}" for name, size in dataclasses.asdict(memory).items()
    )


_SIZE = r"([\d.]+)([KMGT]?)"


def _refusal(message: str) -> Refusal:
    """Read what a TPU's compiler says of memory.

    Raises:
        ValueError: it speaks of something else.
    """
    first = message.strip().splitlines()[0]
    for pattern in (
        rf"memory required for (.+?) \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
        rf"()Used {_SIZE} of {_SIZE} hbm",
    ):
        if match := re.search(pattern, message):
            what, needed, unit, available, other = match.groups()
            kind = what.replace("HLO ", "") or "all"
            said = (
                f"{needed} {unit}iB needed for {kind} of {available} {other}iB of HBM"
            )
            return Refusal(said)
    if "RESOURCE_EXHAUSTED" in message:
        return Refusal(first)
    raise ValueError(f"the compiler refuses the step: {first}")
