"""A compiled program's text, read back: its instructions, and how often each runs.

XLA prints a program as computations of instructions, `name = shape opcode(operands)`.
Loops say how often they run in the comparison that ends them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)"
    r"=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """An array of an instruction's result."""

    dtype: str
    sizes: tuple[int, ...]
    in_memory: bool  # the device's main one; else one close to its units

    @property
    def bytes(self) -> int:
        """As its elements take them, without a layout's padding."""
        return -(-math.prod(self.sizes) * self.bits // 8)

    @property
    def bits(self) -> int:
        """Of an element."""
        digits = re.search(r"\d+", self.dtype)
        return BITS.get(self.dtype, int(digits[0]) if digits else 0)

    def __str__(self) -> str:
        """Print as XLA does."""
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    called: Mapping[str, tuple[str, ...]]  # computations, by the role they play
    text: str
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order they run."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What the computation returns."""
        every = list(self.instructions.values())
        return next((each for each in every if each.is_root), every[-1])


@dataclasses.dataclass(frozen=True)
class Runs:
    """How often a step runs a computation."""

    times: int
    in_loop: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a compiled program."""

    computations: Mapping[str, Computation]
    entry: str

    def runs(self, *, through_fusions: bool) -> dict[str, Runs]:
        """Return how often each computation that is reached runs in one step.

        Args:
            through_fusions: count the insides of fused instructions too.
        """
        found: dict[str, Runs] = {}

        def visit(name: str, times: int, in_loop: bool) -> None:
            if name not in self.computations:
                return
            before = found.get(name, Runs(0, False))
            found[name] = Runs(before.times + times, before.in_loop or in_loop)
            for each in self.computations[name].instructions.values():
                if each.opcode == "while":
                    trips = self.trips(each)
                    for body in each.called.get("body", ()):
                        visit(body, times * trips, True)
                elif each.opcode != "fusion" or through_fusions:
                    for role, names in each.called.items():
                        # What a reduction applies to two numbers is not its own step.
                        if role != "to_apply" or each.opcode == "call":
                            for called in names:
                                visit(called, times, in_loop)

        visit(self.entry, 1, False)
        return found

    def trips(self, loop: Instruction) -> int:
        """Return how often a loop's body runs; 1 where the program does not say."""
        if match := _TRIPS.search(loop.text):
            return int(match[1])
        (name,) = loop.called["condition"]
        bounds = list(self._constants(name))
        return max(bounds, default=1)

    def _constants(self, name: str) -> Any:
        for each in self.computations[name].instructions.values():
            if each.opcode == "constant" and each.result[0].dtype == "s32":
                match = re.search(r"constant\((\d+)\)", each.text)
                if match:
                    yield int(match[1])
            for called in each.called.values():
                for inner in called:
                    yield from self._constants(inner)


def read_program(text: str) -> Program:
    """Read what `compiled.as_text()` of JAX returns.

    Raises:
        ValueError: it has no entry.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        if line[:1] in ("%", "E") and line.endswith("{") and "->" in line:
            name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
            lines = []
        elif line.rstrip() == "}" and name:
            computations[name] = Computation(name, _read_instructions(lines))
            name = ""
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # what a kernel says of itself takes several lines
            lines[-1] += line
    if not entry:
        raise ValueError("the compiler's text of the program has no ENTRY")
    return Program(computations, entry)


def _read_instructions(lines: Sequence[str]) -> dict[str, Instruction]:
    found = {}
    for line in lines:
        if match := _INSTRUCTION.match(line):
            found[match[2]] = _read_instruction(match[2], match[3], bool(match[1]))
    return found


def read_arrays(text: str) -> tuple[ArrayShape, ...]:
    """Read the arrays of a shape, those of a tuple one after another."""
    return tuple(
        ArrayShape(
            dtype,
            tuple(int(size) for size in sizes.split(",") if size),
            # S(1) and above are memories other than the main one.
            not re.search(r"S\([1-9]\d*\)", layout or ""),
        )
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def _read_instruction(name: str, text: str, is_root: bool) -> Instruction:
    text = re.sub(r"/\*index=\d+\*/", "", text)
    shape, rest = _split_shape(text)
    match = re.match(r"([\w-]+)\(", rest)
    opcode = match[1] if match else ""
    inside = _inside_parentheses(rest[len(opcode) :])
    # Operands may stand with their shapes: only names have a percent sign then.
    operands: Sequence[str] = re.findall(r"%([\w.-]+)", inside)
    if not operands:
        operands = [part.strip() for part in inside.split(",") if part.strip()]
    after = rest[len(opcode) + len(inside) + 2 :]
    called: dict[str, tuple[str, ...]] = {}
    for role, callee in _CALLED.findall(after):
        called[role] = (*called.get(role, ()), callee)
    if branches := _BRANCHES.search(after):
        called["branches"] = tuple(
            part.strip().lstrip("%") for part in branches[1].split(",")
        )
    return Instruction(
        name, opcode, read_arrays(shape), tuple(operands), called, rest, is_root
    )


def _split_shape(text: str) -> tuple[str, str]:
    """Split `shape opcode(...)` where the shape ends."""
    if text.startswith("("):
        inside = _inside_parentheses(text)
        return text[: len(inside) + 2], text[len(inside) + 2 :].lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest.lstrip()


def _inside_parentheses(text: str) -> str:
    """Return what the parentheses hold that a text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[1:place]
    return text[1:]
