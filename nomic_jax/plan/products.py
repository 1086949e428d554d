"""FLOPs of a compiled program's products, each as often as its loops run it.

What the compiler made of a step, beside `arithmetic`, which counts what it was given: a
product that was duplicated or changed into others shows here alone. A TPU's compiler
turns products into convolutions. A kernel is counted by what it says of itself.
"""

import math
import re
from collections.abc import Mapping

from nomic_jax.model.attention_splash import PASS, pass_flops
from nomic_jax.plan.program import ArrayShape, Instruction, Program

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
