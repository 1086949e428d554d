"""Bytes that a compiled step moves to and from a device's memory.

As XLA's own cost analysis counts: each instruction reads its operands and writes its
result, one fused out of many counts as one, and slices as what is sliced. That analysis
takes a loop's body once; here it counts as often as it runs. What the compiler keeps in
a memory close to the units costs nothing.
"""

from collections.abc import Iterator, Sequence

from nomic_jax.model.attention_splash import read_again
from nomic_jax.plan.products import kernel_queries
from nomic_jax.plan.program import ArrayShape, Computation, Instruction, Program

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
