"""This host's devices: a model replicated on each, the matmul dtype, the program cache.

Training spreads a model over the devices of all hosts; to embed, a host needs a copy of
its own, over whose devices rows of texts are spread.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

Tree = TypeVar("Tree")


def replicate_on_local_devices(model: Tree) -> Tree:
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
        model: as `replicate_on_local_devices` placed it, or on one device.
    """
    found = jax.tree.leaves(model)[0].sharding
    if not isinstance(found, NamedSharding):
        return jax.device_put(rows, found)
    number = jax.tree.leaves(rows)[0].shape[0]
    split = number % found.mesh.size == 0
    axes = found.mesh.axis_names if split else None
    place: Sharding = NamedSharding(found.mesh, PartitionSpec(axes))
    return jax.device_put(rows, place)


Dtype = Literal["float32", "bfloat16"]
MIN_COMPILE_TIME = "jax_persistent_cache_min_compile_time_secs"


def chosen_dtype(dtype: str | None) -> Dtype:
    """Return the type that is asked for, or the default where none is.

    Raises:
        ValueError: there is no such type.
    """
    for each in get_args(Dtype):
        if dtype == each:
            return each
    if dtype is not None:
        raise ValueError(f"dtype={dtype!r} must be one of {get_args(Dtype)}")
    return default_dtype()


def default_dtype() -> Dtype:
    """Return the type matmuls run in here: bfloat16 on GPU and TPU, float32 on CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def default_tokens_per_batch() -> int:
    """Return how many tokens to embed at once.

    A processor works from its cache: on 2 loaded cores 2,048 tokens ran three times as
    fast as 16,384. It is a row of the trained length. An accelerator has lanes to fill.
    """
    return 2048 if jax.default_backend() == "cpu" else 16_384


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, unless it was told where already.

    The folder is `nomic_jax/xla` under the user's cache folder (`XDG_CACHE_HOME`).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "nomic_jax" / "xla"))
        if MIN_COMPILE_TIME.upper() not in os.environ:
            # JAX keeps what took 1 s to compile; small encoders take less, and add up.
            jax.config.update(MIN_COMPILE_TIME, 0.2)
