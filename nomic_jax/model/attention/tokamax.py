"""Attention by tokamax's kernels for NVIDIA GPUs: each query has a range of keys.

A text is a run of columns, and so is what a window leaves of it: a query's keys begin
and end somewhere, and the kernel skips the tiles outside (Dao 2023, FlashAttention-2,
arXiv:2307.08691, whose tiles they are).
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nomic_jax.batch import positions_and_lengths
from nomic_jax.model.attention.backends import AttentionSpec, needs_gpu

# Ranges are no part of its public functions; this is where 0.0.12 has them.
OPERATIONS = "tokamax._src.ops.attention.api"
MASKS = "tokamax._src.ops.attention.base"
KERNELS = ("mosaic_gpu", "triton")  # of Hopper and Blackwell; of Ampere


def unsupported(spec: AttentionSpec) -> str | None:
    """Return why it cannot compute a case; None: it can."""
    if reason := needs_gpu(spec):
        return reason
    if spec.devices > 1:
        return f"runs on one device, and {spec.devices} compute a batch together"
    if reason := why_missing():
        return f"cannot be imported: {reason}"
    return None


def auto_skips(spec: AttentionSpec) -> bool:
    """Return False: what it can compute, `auto` lets it."""
    return False


def attend(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    segment_ids: Int[Array, "B S"],
    window: int | None = None,
    *,
    texts: int | None = None,
    kernels: tuple[str, ...] = KERNELS,
) -> Float[Array, "B S H K"]:
    """Attend as `layer.attend` says.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: of the tokens.
        window: columns to either side that a token attends to; None: all.
        texts: however many a row holds.
        kernels: by tokamax's names; the first that knows the device.

    Raises:
        NotImplementedError: none of them takes such arrays or such a device.
    """
    operations = importlib.import_module(OPERATIONS).IMPLEMENTATIONS
    start, end = key_ranges(segment_ids, window)
    mask = importlib.import_module(MASKS).Mask(
        k_start=start[:, None], k_end=end[:, None]
    )
    refused = []
    for name in kernels:
        try:
            return _call(operations[name], q, k, v, mask)
        except (KeyError, NotImplementedError) as error:
            refused.append(f"{name}: {error}")
    raise NotImplementedError(f"tokamax has no kernel here: {'; '.join(refused)}")


def _call(operation: Any, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any) -> Any:
    return operation(q, k, v, mask=mask, logits_scale=q.shape[-1] ** -0.5)


def key_ranges(
    segment_ids: Int[Array, "B S"], window: int | None
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Return the first column that each one attends to, and that after the last."""
    columns = jnp.arange(segment_ids.shape[1])[None]
    places, lengths = positions_and_lengths(segment_ids)
    start = columns - places
    end = start + lengths
    if window is not None:
        start = jnp.maximum(start, columns - window)
        end = jnp.minimum(end, columns + window + 1)
    return start, end


@functools.cache
def why_missing() -> str | None:
    """Return why tokamax cannot be imported, None where it can.

    It takes typeguard 2.13.3 alone (0.0.12 still), and tyro, which reads command lines
    here, 4 and above: what runs from Python alone may have tokamax.
    """
    try:
        importlib.import_module(OPERATIONS)
    except (ImportError, SyntaxError) as error:
        return f"{type(error).__name__}: {error}"
    return None
