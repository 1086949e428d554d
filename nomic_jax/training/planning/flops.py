"""FLOPs of a traced step's products, recomputed ones and padding included.

XLA's cost analysis counts a loop's body once, and of a kernel nothing. The traced
program still says how long each loop is. Only products count, each with its addition as
2; that is all but a hundredth of an encoder's arithmetic, and all that the peak of a
chip is about.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.extend import core

from nomic_jax.distributed.mesh import EXPERT
from nomic_jax.model.attention.splash import LANES, PASS, tiled
from nomic_jax.model.grouped_matmul import GROUPED

# Of a pass: scores and their sum of values; the scores again, and four gradients.
PRODUCTS = {"forward": 2, "backward": 5}


def pass_flops(text: str, shape: Sequence[int]) -> float:
    """Return the FLOPs of a pass of the kernel, 0 for what is none.

    Args:
        text: that holds its name.
        shape: of its queries, B H S K, or H S K where the compiler dropped a B of 1.
    """
    if not (found := PASS.search(text)):
        return 0.0
    *batch, columns, width = shape
    products = PRODUCTS[found[1]]
    return 2.0 * products * math.prod(batch) * width * pairs(columns, _window(found))


def read_again(text: str, shape: Sequence[int], size: int) -> float:
    """Return the bytes that a pass reads besides each operand once, 0 for no pass.

    Each tile of queries meets each of keys, which is there with its values for as long:
    it is read again for every other. The backward pass has their roles changed. Going
    forward, ids of the queries' segments, 128 times side by side, are read for each
    head.

    Args:
        text: that holds its name.
        shape: of its queries, B H S K, or H S K where the compiler dropped a B of 1.
        size: bytes of a number.
    """
    if not (found := PASS.search(text)):
        return 0.0
    *batch, heads, columns, width = shape
    rows = math.prod(batch)
    tile = tiled(columns)[1]
    loads = pairs(columns, _window(found)) / tile - columns
    again = 2.0 * rows * heads * loads * width * size
    ids = rows * (heads - 1) * columns * LANES * 4
    return again + ids if found[1] == "forward" else again


def _window(found: re.Match[str]) -> int | None:
    return None if found[2] == "all" else int(found[2])


def pairs(length: int, window: int | None) -> int:
    """Count the pairs of query and key in the tiles that the kernel computes."""
    columns, tile = tiled(length)
    count = columns // tile
    if window is None:
        return columns**2
    # The nearest columns of tiles n apart are (n - 1) tiles and one column apart.
    reach = min((window - 1) // tile + 1 if window else 0, count - 1)
    return (count * (2 * reach + 1) - reach * (reach + 1)) * tile**2


def product_flops(traced: core.Jaxpr) -> float:
    """Return the FLOPs of all products that a program runs, on all devices together.

    Rows that meet the matrices of their groups count as each meeting one. Where devices
    hold parts of the groups and the same rows, each computes its share of them: how
    large a share, only the data tell, so that they count as evenly spread.

    Args:
        traced: such as `jax.jit(f).trace(...).jaxpr.jaxpr`.
    """
    return _program_flops(traced, 1)


def _program_flops(traced: core.Jaxpr, holders: int) -> float:
    """Count a program's, on devices of which `holders` have the groups together."""
    return sum(_flops(equation, holders) for equation in traced.eqns)


def _flops(equation: Any, holders: int) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        summed = math.prod(sizes[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
    if name == "jit" and PASS.match(parameters["name"]):
        # What rematerialisation has cut off, such as a mask, has no queries.
        shapes = [variable.aval.shape for variable in equation.invars]
        queries = [shape for shape in shapes if len(shape) == 4]
        return pass_flops(parameters["name"], queries[0]) if queries else 0.0
    if name == "jit" and parameters["name"] in GROUPED:
        # Rows (N A) and matrices (groups A B), or rows (N A) and rows (N B); neither
        # where rematerialisation has cut off what does not depend on them.
        avals = [variable.aval for variable in equation.invars]
        arrays = [aval.shape for aval in avals if aval.ndim > 1]
        if len(arrays) < 2:
            return 0.0
        return 2.0 * math.prod(arrays[0]) * arrays[1][-1] / holders
    if name == "shard_map":
        mesh: Mapping[str, int] = parameters["mesh"].shape
        times = math.prod(mesh[axis] for axis in parameters["newly_manual_axes"])
        holders = mesh.get(EXPERT, 1)
    else:
        times = parameters["length"] if name == "scan" else 1
    inner = [_program_flops(each, holders) for each in _programs(parameters)]
    return max(inner) if name == "cond" else times * sum(inner)


def _programs(parameters: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the programs that a primitive of another one's runs."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each
