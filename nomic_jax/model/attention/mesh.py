"""A kernel within a compiled program: each device runs it on its own rows and heads.

The compiler cannot split a kernel as it splits products. Of the mesh's axes, those of
programs that devices run by themselves already are done with (`sharding.over_data`);
along the others arrays are taken apart here, where their sizes let them be.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

HEADS_AXIS = "tensor"  # of a mesh, along which heads are split


def on_each_device(
    function: Callable[..., Any], *, heads: Sequence[bool], like: jax.Array
) -> Callable[..., Any]:
    """Run a function of arrays B H ... and B ... on each device's part of them.

    Args:
        function: returns arrays B H ..., some of them.
        heads: which arguments have heads as their second axis.
        like: an array B H ...; what is returned differs along the axes it does.

    Raises:
        ValueError: heads do not split over the axis that is there for them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    ]
    if not free:
        return function
    rows, count = like.shape[:2]
    split: str | None = None
    if HEADS_AXIS in free:
        size = mesh.shape[HEADS_AXIS]
        if count % size:
            raise ValueError(
                f"{count} heads do not split over {HEADS_AXIS}={size}; choose a size "
                "that divides them"
            )
        split = HEADS_AXIS
    own = tuple(name for name in free if name != HEADS_AXIS)
    parts = math.prod(mesh.shape[name] for name in own)
    # Rows that do not split are computed whole by every device.
    over_rows = own if rows % parts == 0 else None
    with_heads = PartitionSpec(over_rows, split)
    run = jax.shard_map(
        function,
        in_specs=tuple(
            with_heads if each else PartitionSpec(over_rows) for each in heads
        ),
        out_specs=with_heads,
        axis_names=set(free),
        check_vma=False,  # kernels do not say along which axes their results differ
    )

    def everywhere(*arrays: jax.Array) -> Any:
        return jax.tree.map(lambda out: _differing(out, like), run(*arrays))

    return everywhere


def on_devices_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Let what is compiled meanwhile know the mesh that a model is on, if it is on one.

    The compiler splits rows over devices by itself, but not those of a kernel: see
    `on_each_device`.
    """
    found = jax.tree.leaves(model)[0].sharding
    if isinstance(found, NamedSharding) and isinstance(found.mesh, Mesh):
        return jax.set_mesh(found.mesh)
    return contextlib.nullcontext()


def _differing(array: jax.Array, like: jax.Array) -> jax.Array:
    """Mark an array as differing between devices along the axes that another does."""
    known, found = (jax.typeof(each).manual_axis_type.varying for each in (like, array))
    axes = tuple(name for name in known if name not in found)
    return jax.lax.pcast(array, axes, to="varying") if axes else array
