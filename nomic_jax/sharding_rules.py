"""One table for where parameters lie on a mesh; it names them by their paths."""

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

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
