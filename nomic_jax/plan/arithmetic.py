"""FLOPs of a traced step's products, recomputed ones and padding included.

XLA's cost analysis counts a loop's body once, and of a kernel nothing. The traced
program still says how long each loop is. Only products count, each with its addition as
2; that is all but a hundredth of an encoder's arithmetic, and all that the peak of a
chip is about.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend import core


def product_flops(traced: core.Jaxpr) -> float:
    """Return the FLOPs of all products that a program runs, on all devices together.

    Args:
        traced: such as `jax.jit(f).trace(...).jaxpr.jaxpr`.
    """
    return sum(map(_flops, traced.eqns))


def _flops(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        summed = math.prod(sizes[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
    inner = [product_flops(each) for each in _programs(parameters)]
    if name == "cond":
        return max(inner)
    times = parameters["length"] if name == "scan" else 1
    if name == "shard_map":
        sizes: Mapping[str, int] = parameters["mesh"].shape
        times = math.prod(sizes[axis] for axis in parameters["newly_manual_axes"])
    return times * sum(inner)


def _programs(parameters: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the programs that a primitive of another one's runs."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each
