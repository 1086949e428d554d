"""The mesh of devices, and where batches and parameters are placed on it.

    data     batches are split, parameters replicated
    fsdp     batches and parameters are split; a step gathers parameters once
             (Rajbhandari et al. 2019, ZeRO, arXiv:1910.02054, stage 2)
    expert   experts are split: each device computes what its own make of all its rows'
             tokens, and a layer sums over devices (the parameters' layout of Lepikhin
             et al. 2020, GShard, arXiv:2006.16668, section 3.2; tokens stay)
    tensor   heads and the MLP's width are split (Shoeybi et al. 2019, Megatron-LM,
             arXiv:1909.08053, section 3)

Modules know nothing of it: one table places parameters by their paths.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from nomic_jax.batch import MlmBatch, PairBatch, TaskBatch

REPEATED = PartitionSpec()
EXPERT = "expert"  # the axis along which devices hold parts of the experts
# The first rule that matches the end of a parameter's path places it.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"word_embedding\.embedding", PartitionSpec("fsdp")),  # V D
    (r"attention\.qkv\.kernel", PartitionSpec(None, "fsdp", None, "tensor")),  # LD3HK
    (r"attention\.out\.kernel", PartitionSpec(None, "tensor", None, "fsdp")),  # LHKD
    (r"mlp\.(gate|up)\.kernel", PartitionSpec(None, "fsdp", "tensor")),  # L D width
    (r"mlp\.down\.kernel", PartitionSpec(None, "tensor", "fsdp")),  # L width D
    (r"experts\.up", PartitionSpec(None, EXPERT, "fsdp", "tensor")),  # L E D width
    (r"experts\.down", PartitionSpec(None, EXPERT, "tensor", "fsdp")),  # L E width D
    (r"experts\.up_bias", PartitionSpec(None, EXPERT, "tensor")),  # L E width
    (r"head\.dense\.kernel", PartitionSpec("fsdp")),  # D D
    (r"", REPEATED),  # norms, biases, routers, token types, counts
)


def parameter_spec(path: str) -> PartitionSpec:
    """Return the rule for a parameter, or a moment of it, by its path."""
    return next(spec for rule, spec in RULES if re.search(rule + "$", path))


def shardings(tree: Any, names: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return the sharding of each array of a state.

    Args:
        tree: arrays or their shapes.
        names: a tree of the same structure with the arrays' paths.
        mesh: with the axes `AXES`.

    Raises:
        ValueError: an axis of the mesh does not divide the axis it splits; all such
            arrays are named.
    """
    problems = []

    def one(array: jax.Array | jax.ShapeDtypeStruct, name: str) -> NamedSharding:
        spec = parameter_spec(name)
        for size, axis in zip(array.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                problems.append(
                    f"{name} has shape {array.shape}, of which {size} does not split "
                    f"over {axis}={mesh.shape[axis]}"
                )
        return NamedSharding(mesh, spec)

    placed = jax.tree.map(one, tree, names)
    if problems:
        raise ValueError(
            f"the mesh does not fit the model: {'; '.join(problems)}; choose an axis "
            "that divides them"
        )
    return placed


AXES = ("data", "fsdp", EXPERT, "tensor")
ROW_AXES = ("data", "fsdp")
OWN_AXES = (*ROW_AXES, EXPERT)  # along which devices run programs of their own
ROWS = PartitionSpec(ROW_AXES)  # of a batch
Tree = TypeVar("Tree")
Batch = TypeVar("Batch", MlmBatch, PairBatch, TaskBatch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices lie along each axis; one axis at most takes the rest (-1)."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that describe no mesh.

        Raises:
            ValueError: a size is 0 or below -1, or two are -1.
        """
        sizes = dataclasses.asdict(self)
        bad = [
            f"{axis}={size}" for axis, size in sizes.items() if size < -1 or not size
        ]
        if bad:
            raise ValueError(f"mesh: {', '.join(bad)} must be positive, or -1")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh {sizes}: only one axis can take the rest (-1)")

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Return the sizes along `AXES` for a number of devices.

        Raises:
            ValueError: the sizes do not multiply to the devices.
        """
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if devices % fixed or (-1 not in sizes.values() and fixed != devices):
            given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise ValueError(
                f"a mesh of {given} does not fit {devices} devices: the sizes must "
                "multiply to them, -1 standing for the rest"
            )
        rest = devices // fixed
        data, fsdp, expert, tensor = (
            rest if size == -1 else size for size in sizes.values()
        )
        return data, fsdp, expert, tensor


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Lay devices out as the config says; a single device needs no mesh.

    Args:
        config: sizes of the axes.
        devices: all there are where not given.

    Raises:
        ValueError: the sizes do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    if len(devices) == 1:
        return None
    automatic = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=automatic, devices=devices)


def row_parts(mesh: Mesh | None) -> int:
    """Return into how many parts the rows of a batch are split."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def host_share(mesh: Mesh | None) -> tuple[int, int]:
    """Return which share of a batch's rows this process builds, and of how many.

    Processes that hold the same rows, as where the tensor axis goes over them, build
    the same share.

    Raises:
        ValueError: the mesh gives this process rows that are not side by side.
    """
    if mesh is None:
        return 0, 1
    parts = row_parts(mesh)
    places = NamedSharding(mesh, ROWS).devices_indices_map((parts,))
    mine = sorted(
        {
            rows.start or 0
            for device, (rows,) in places.items()
            if device.process_index == jax.process_index()
        }
    )
    if mine != list(range(mine[0], mine[0] + len(mine))) or mine[0] % len(mine):
        raise ValueError(
            f"process {jax.process_index()} holds parts {mine} of {parts} of the rows; "
            "order the mesh so that each process holds parts side by side"
        )
    return mine[0] // len(mine), parts // len(mine)


def batch_specs(batch: Batch) -> Batch:
    """Return the spec of each array of a batch: rows are split, places repeated."""
    specs = jax.tree.map(lambda _: ROWS, batch)
    if isinstance(batch, PairBatch):
        specs = dataclasses.replace(
            specs, query_places=REPEATED, document_places=REPEATED
        )
    return specs


def put_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """Move this host's rows to its devices, as its part of the global arrays."""
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(
        lambda array, spec: jax.make_array_from_process_local_data(
            NamedSharding(mesh, spec), array
        ),
        batch,
        batch_specs(batch),
    )


def over_data(
    function: Callable[..., Tree],
    mesh: Mesh | None,
    *,
    names: Any,
    splits: Sequence[bool],
) -> Callable[..., Tree]:
    """Run a function of a model and rows on each device that has rows of its own.

    Each gathers the model's split parameters before the function begins, and marks all
    as differing between devices. Their gradient is then summed, and each device left
    with its part, once, where the function ends, not in each microbatch and layer.

    Devices along the expert axis have the same rows, and of the experts each a part.
    Only these are marked as differing along it: what else the model holds, and all
    that it computes, is the same on each, and `model.moe` sums over what differs.

    Args:
        function: of the model and further arguments; returns arrays whose leading axes
            are those of the rows.
        mesh: None: the function is called as it is.
        names: a tree of the model's structure with its parameters' paths.
        splits: which of the further arguments are split along their leading axis.
    """
    if mesh is None:
        return function
    if math.prod(mesh.shape[axis] for axis in OWN_AXES) == 1:
        return _knowing(mesh.abstract_mesh, function)
    split = {axis for axis in OWN_AXES if mesh.shape[axis] > 1}

    def spec(name: str) -> PartitionSpec:
        return PartitionSpec(*(a if a in split else None for a in parameter_spec(name)))

    specs = jax.tree.map(spec, names)

    def local(model: Any, *arguments: Any) -> Tree:
        return function(jax.tree.map(_gathered, model, specs), *arguments)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, *(ROWS if each else REPEATED for each in splits)),
        out_specs=ROWS,
        axis_names=set(OWN_AXES),
    )


def _knowing(mesh: AbstractMesh, function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Let a function know the mesh that it is traced for, as kernels need to."""

    def run(*arguments: Any) -> Tree:
        with jax.sharding.use_abstract_mesh(mesh):
            return function(*arguments)

    return run


def _gathered(array: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Gather a parameter along the axes of rows."""
    repeated = tuple(axis for axis in ROW_AXES if axis not in spec)
    array = jax.lax.pcast(array, repeated, to="varying")
    for place, axis in enumerate(spec):
        if axis in ROW_AXES:
            array = jax.lax.all_gather(array, axis, axis=place, tiled=True)
    return array


def shared(function: Callable[..., Tree], mesh: Mesh | None) -> Callable[..., Tree]:
    """Run a function of repeated arrays on all devices, each computing a share.

    Args:
        function: takes `axis`, the axes along which its devices share the work, or
            None; what it returns is the same on all of them.
        mesh: None: the function is called as it is.
    """
    if row_parts(mesh) == 1 or mesh is None:
        return function
    return jax.shard_map(
        functools.partial(function, axis=ROW_AXES),
        mesh=mesh,
        in_specs=REPEATED,
        out_specs=REPEATED,
        axis_names=set(ROW_AXES),
    )


def constrain(array: jax.Array, mesh: Mesh | None, spec: PartitionSpec) -> jax.Array:
    """Say where an array inside a compiled function is; without a mesh, nothing."""
    if mesh is None:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))
