"""A host's own devices: a model whole on each of them, rows of texts spread over them.

Training spreads a model over the devices of all hosts; to embed, a host needs one of
its own.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

Tree = TypeVar("Tree")


def on_own_devices(model: Tree) -> Tree:
    """Copy a model whole to each device of this host.

    Where it is spread over several hosts, all of them call this.

    Args:
        model: a tree of arrays, on one device or on a mesh.
    """
    devices = np.array(jax.local_devices())
    whole = NamedSharding(Mesh(devices, ("rows",)), PartitionSpec())
    found = jax.tree.leaves(model)[0].sharding
    if not isinstance(found, NamedSharding) or found.is_fully_addressable:
        return jax.device_put(model, whole if len(devices) > 1 else devices[0])
    repeated = _repeat(NamedSharding(found.mesh, PartitionSpec()))(model)

    def own(array: jax.Array) -> jax.Array:
        pieces = [shard.data for shard in array.addressable_shards]
        if len(pieces) == 1:
            return pieces[0]
        return jax.make_array_from_single_device_arrays(array.shape, whole, pieces)

    return jax.tree.map(own, repeated)


@functools.cache
def _repeat(everywhere: NamedSharding) -> Callable[[Any], Any]:
    """Compile once, and not at every evaluation, what repeats a model's arrays."""
    return jax.jit(lambda tree: tree, out_shardings=everywhere)


def digest(model: Any) -> str:
    """Digest the arrays of a model that this host has whole."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(model):
        found.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return found.hexdigest()


def num_devices(model: Any) -> int:
    """Return on how many devices a model is."""
    return len(jax.tree.leaves(model)[0].sharding.device_set)


def spread_rows(rows: Tree, model: Any) -> Tree:
    """Put rows of texts where a model is, each device taking a share of them.

    Args:
        rows: a tree of arrays on the host, of a common leading axis; where it does not
            split over the devices, each of them gets all rows.
        model: as `on_own_devices` placed it, or on one device.
    """
    found = jax.tree.leaves(model)[0].sharding
    if not isinstance(found, NamedSharding):
        return jax.device_put(rows, found)
    number = jax.tree.leaves(rows)[0].shape[0]
    split = number % found.mesh.size == 0
    axes = found.mesh.axis_names if split else None
    place: Sharding = NamedSharding(found.mesh, PartitionSpec(axes))
    return jax.device_put(rows, place)
