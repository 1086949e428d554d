"""A stage's step, compiled for devices that are not here: what it needs, or a refusal.

The compiler knows best what fits: it refuses a program for which the device's memory
does not suffice, and says by how much. From the compiled program are read

* the FLOPs of its matmuls, each as often as its loops run it. What the compiler
  duplicated or changed shows here alone: a TPU's turns matmuls into convolutions. A
  kernel is counted by what it says of itself.
* the bytes to and from the device's memory, as XLA's own cost analysis counts: each
  instruction reads its operands and writes its result, a fusion counts as one, and
  slices as what is sliced; but a loop's body counts as often as it runs. What the
  compiler keeps in a memory close to the units costs nothing.
* what goes between chips. A ring of n devices sends 2 (n - 1) / n of the bytes it
  reduces to all, and (n - 1) / n of those it gathers, from each device: the fewest that
  any algorithm does (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from nomic_jax.model.attention.splash import PASS
from nomic_jax.training.planning.abstract import Step
from nomic_jax.training.planning.flops import pass_flops, product_flops, read_again
from nomic_jax.training.planning.hlo import (
    ArrayShape,
    Computation,
    Instruction,
    Program,
    read_program,
)
from nomic_jax.training.planning.topology import GIB, Chip

KERNEL = "tpu_custom_call"


def compiled_flops(program: Program) -> float | None:
    """Count the FLOPs of one device's products; None where a kernel is not known."""
    total = 0.0
    for name, runs in program.runs(through_fusions=True).items():
        instructions = program.computations[name].instructions
        for each in instructions.values():
            counted = _flops(each, instructions)
            if counted is None:
                return None
            total += runs.times * counted
    return total


def _flops(each: Instruction, among: Mapping[str, Instruction]) -> float | None:
    if each.opcode == "dot":
        left = _sizes(among, each.operands[0])
        axes = _numbers(each.text, r"lhs_contracting_dims=\{([\d,]*)\}", ",")
        summed = math.prod(left[axis] for axis in axes)
        return 2.0 * math.prod(each.result[0].sizes) * summed
    if each.opcode == "convolution":
        left, right = (_sizes(among, name) for name in each.operands[:2])
        return convolution_flops(each.text, left, right, each.result[0].sizes)
    if queries := kernel_queries(each):
        return pass_flops(each.text, queries.sizes)
    unknown = each.opcode == "custom-call" and KERNEL in each.text
    return None if unknown else 0.0


def kernel_queries(each: Instruction) -> ArrayShape | None:
    """Return an array like the queries of a pass of splash, None of what is none."""
    if each.opcode != "custom-call" or KERNEL not in each.text:
        return None
    if not (found := PASS.search(each.text)):
        return None
    # Results are B H S K and what is kept of each softmax, or three gradients.
    return each.result[-2 if found[1] == "forward" else -1]


def convolution_flops(
    text: str,
    left: tuple[int, ...],
    right: tuple[int, ...],
    result: tuple[int, ...],
) -> float:
    """Count a convolution's FLOPs, as XLA's own analysis does.

    A product's axes of a batch become axes of space, along which most places of the
    window meet nothing: dilation leaves one that does.

    Args:
        text: of the instruction.
        left: sizes of its first operand.
        right: of its second.
        result: of what it returns.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels is not None, text
    of_left, of_right, of_result = labels.groups()
    groups = re.search(r"batch_group_count=(\d+)", text)
    total = 2.0 * right[of_right.index("i")] * result[of_result.index("b")]
    total *= result[of_result.index("f")] / (int(groups[1]) if groups else 1)
    spatial = sorted(label for label in of_left if label.isdigit())
    count = len(spatial)
    sizes = _window(text, "size", count, 1)
    strides, left_dilation, right_dilation = (
        _window(text, name, count, 1) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    padding = re.search(r"window=\{[^}]*\bpad=([-\dx_]+)", text)
    before = (
        [int(pair.split("_")[0]) for pair in padding[1].split("x")] if padding else []
    )
    for axis, label in enumerate(spatial):
        total *= _meetings(
            size=sizes[axis],
            stride=strides[axis],
            before=before[axis] if before else 0,
            left=left[of_left.index(label)],
            left_dilation=left_dilation[axis],
            right_dilation=right_dilation[axis],
            places=result[of_result.index(label)],
        )
    return total


def _meetings(
    *,
    size: int,
    stride: int,
    before: int,
    left: int,
    left_dilation: int,
    right_dilation: int,
    places: int,
) -> int:
    """Count along an axis the pairs of an operand's places and the window's."""
    count = 0
    for window in range(size):
        for place in range(places):
            at = place * stride + window * right_dilation - before
            whole, rest = divmod(at, left_dilation)
            count += rest == 0 and 0 <= whole < left
    return count


def _window(text: str, name: str, count: int, default: int) -> list[int]:
    found = _numbers(text, rf"window=\{{[^}}]*\b{name}=([\dx]+)", "x")
    return found or [default] * count


def _numbers(text: str, pattern: str, separator: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(each) for each in found[1].split(separator) if each] if found else []


def _sizes(among: Mapping[str, Instruction], name: str) -> tuple[int, ...]:
    return among[name].result[0].sizes


# Names for what is there already, and control flow: nothing moves.
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "partition-id", "replica-id", "domain"),
    *("opt-barrier", "optimization-barrier", "iota"),
)
SLICES = ("dynamic-slice", "slice", "gather")
RENAMES = ("bitcast", "copy", "reshape", "convert", "transpose")


def memory_traffic(program: Program) -> float:
    """Return the bytes of a step, on one device."""
    runs = program.runs(through_fusions=False)
    return float(
        sum(
            where.times * sum(_bytes(program, program.computations[name]))
            for name, where in runs.items()
        )
    )


def _bytes(program: Program, computation: Computation) -> Iterator[int]:
    """Yield the bytes that each instruction of a computation moves."""
    for each in computation.instructions.values():
        if each.opcode in FREE or each.opcode.endswith("-done"):
            continue
        if each.opcode == "custom-call" and "AllocateBuffer" in each.text:
            continue
        operands = [
            computation.instructions[name].result
            if name in computation.instructions
            else ()
            for name in each.operands
        ]
        if each.opcode == "fusion":
            (inside,) = each.called["calls"]
            yield from _fused(program.computations[inside], each, operands)
        elif queries := kernel_queries(each):
            yield _size(each.result) + sum(map(_size, operands))
            yield int(read_again(each.text, queries.sizes, queries.bits // 8))
        elif each.opcode == "dynamic-update-slice":
            yield 2 * _size(operands[1])
        elif each.opcode in SLICES:
            yield _size(each.result) + min(_size(each.result), _size(operands[0]))
        elif each.opcode.endswith("-start"):
            # (operand, result, context): it reads one and writes the other.
            arrays = [a for a in each.result if a.sizes]
            smallest = min((a.bytes for a in arrays), default=0)
            yield sum(min(a.bytes, smallest) for a in arrays if a.in_memory)
        else:
            yield _size(each.result) + sum(map(_size, operands))


def _fused(
    inside: Computation,
    fusion: Instruction,
    operands: Sequence[Sequence[ArrayShape]],
) -> Iterator[int]:
    """Yield what a fusion reads of each operand, and what it writes."""
    parameters = [e for e in inside.instructions.values() if e.opcode == "parameter"]
    updated = set()
    for root in _roots(inside):
        if root.opcode == "dynamic-update-slice":
            # In place: only the slice is written, and the rest not read.
            updated.add(_source(inside, root.operands[0]).name)
            yield _size(inside.instructions[root.operands[1]].result)
    if not updated:
        yield _size(fusion.result)
    for parameter in parameters:
        number = int(parameter.text.partition("(")[2].partition(")")[0])
        if parameter.name in updated or number >= len(operands):
            continue
        whole = _size(operands[number])
        uses = _uses(inside, parameter.name)
        if uses and all(use.opcode in SLICES for use in uses):
            whole = min(whole, sum(sum(a.bytes for a in use.result) for use in uses))
        yield whole


def _roots(inside: Computation) -> Iterator[Instruction]:
    """Yield what a fusion computes, the parts of a tuple and under other names."""
    roots = [inside.root]
    while roots:
        root = roots.pop()
        known = [n for n in root.operands if n in inside.instructions]
        if root.opcode == "tuple" or (root.opcode == "bitcast" and known):
            roots += [inside.instructions[name] for name in known]
        else:
            yield root


def _source(inside: Computation, name: str) -> Instruction:
    """Follow renamings back to what they rename."""
    found = inside.instructions[name]
    while found.opcode in RENAMES and found.operands[0] in inside.instructions:
        found = inside.instructions[found.operands[0]]
    return found


def _uses(inside: Computation, name: str) -> list[Instruction]:
    """Return the instructions that read a value, through its bitcasts."""
    found = []
    for each in inside.instructions.values():
        if name in each.operands:
            found += _uses(inside, each.name) if each.opcode == "bitcast" else [each]
    return found


def _size(arrays: Sequence[ArrayShape]) -> int:
    return sum(array.bytes for array in arrays if array.in_memory)


KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that devices run together."""

    kind: str
    arrays: tuple[ArrayShape, ...]  # what it leaves on a device
    group: int  # devices that exchange among themselves
    times: int  # a step
    in_loop: bool

    @property
    def bytes(self) -> int:
        """Of what it leaves on a device, once."""
        return sum(array.bytes for array in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that leave a device in a step, at least."""
        others = (self.group - 1) / self.group
        share = {
            "all-reduce": 2 * others,
            "reduce-scatter": self.group - 1,  # of the part that stays
            "collective-permute": 1,
        }
        return self.times * self.bytes * share.get(self.kind, others)


def find_collectives(program: Program, *, devices: int) -> list[Collective]:
    """List a program's collectives, in the order of its text.

    Args:
        program: a compiled step.
        devices: it runs on.
    """
    runs = program.runs(through_fusions=True)
    found: dict[Any, Collective] = {}
    for name, computation in program.computations.items():
        if name not in runs:
            continue
        for each in computation.instructions.values():
            kind = each.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            arrays = _left(each)
            # A TPU's reduce-scatter is an all-reduce fused with the slice of its result
            # that stays.
            root = computation.root
            if kind == "all-reduce" and root.opcode == "dynamic-slice":
                if each.name in root.operands:
                    kind, arrays = "reduce-scatter", root.result
            group = group_size(each.text, devices)
            times, in_loop = runs[name].times, runs[name].in_loop
            # A transfer that goes on next to other work is printed where it begins,
            # where it continues, maybe in a loop, and where it ends.
            chain = re.search(r'chain_id="(\d+)"', each.text)
            key = (kind, group, chain[1]) if chain else (name, each.name)
            if key in found:
                times = min(times, found[key].times)
                in_loop = in_loop and found[key].in_loop
            found[key] = Collective(kind, arrays, group, times, in_loop)
    return list(found.values())


def group_size(text: str, devices: int) -> int:
    """Return how many devices exchange among themselves.

    Args:
        text: of the instruction; its groups are listed, counted, or axes of a mesh.
        devices: all there are, where it names no groups.
    """
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(sizes[a]) for a in re.findall(r"'([^']+)'", match[2]))
    return devices


def summed(collectives: Sequence[Collective]) -> list[tuple[Collective, int]]:
    """Put collectives of one kind, group and place together, the largest first.

    Returns:
        For each, one that has the arrays of all of them, and their number.
    """
    groups: dict[tuple, list[Collective]] = {}
    for each in collectives:
        key = (each.kind, each.group, each.in_loop, each.times)
        groups.setdefault(key, []).append(each)
    together = [
        (
            dataclasses.replace(
                several[0], arrays=tuple(a for each in several for a in each.arrays)
            ),
            len(several),
        )
        for several in groups.values()
    ]
    return sorted(together, key=lambda pair: -pair[0].sent)


def _left(instruction: Instruction) -> tuple[ArrayShape, ...]:
    """Return what a collective leaves; a start returns its operands before that."""
    count = len(instruction.operands)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        return instruction.result[count : 2 * count]
    return instruction.result


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
