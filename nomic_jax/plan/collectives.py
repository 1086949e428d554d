"""What a compiled step sends between devices, each collective with its bytes.

A ring of n devices sends 2 (n - 1) / n of the bytes it reduces to all, and (n - 1) / n
of those it gathers, from each device: the fewest that any algorithm does (Patarasuk and
Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from nomic_jax.plan.program import ArrayShape, Instruction, Program

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
            # A transfer that goes on beside other work is printed where it begins,
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
