"""Model FLOPs of a training step, counted from the architecture, and chips' peaks.

Per token and layer: 8 D^2 for the four projections of attention, 6 D F for a gated MLP
of width F and 4 D F for a plain one, and 4 D n for the scores and their sum over the n
tokens of its own text, in a local layer those of its window. A layer with E experts has
4 D F for each of those that a token goes to, and 2 D E for the router. The MLM head
adds 2 D (D + V) for each masked position. A multiplication with its addition counts as
2, and the backward pass as twice the forward (Kaplan et al. 2020, arXiv:2001.08361,
section 2.1; MFU: Chowdhery et al. 2022, arXiv:2204.02311, appendix B). What is
recomputed to save memory, and padding, do not count.
"""

import jax
import numpy as np

from nomic_jax.batch import PADDING, MlmBatch, PairBatch, TaskBatch
from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import layer_places

# Dense bfloat16 FLOP/s of what JAX calls one device, by the beginning of its kind; the
# vendors' data sheets. A TPU7x chip of 2,307 TFLOP/s is two devices.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return a device's peak bfloat16 FLOP/s, None where it is not known, as of CPUs.

    Args:
        device_kind: as `jax.Device.device_kind` says.
    """
    fitting = [
        kind
        for kind in PEAK_FLOPS
        # A whole word: "TPU v4i" is another chip than "TPU v4".
        if device_kind == kind or device_kind.startswith((f"{kind} ", f"{kind}-"))
    ]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def forward_flops(
    config: ModelConfig, lengths: np.ndarray, *, masked: int = 0
) -> float:
    """Count the FLOPs of a forward pass.

    Args:
        config: the architecture.
        lengths: tokens of each text, padding not counted.
        masked: positions that go through the MLM head.
    """
    lengths = np.asarray(lengths, np.int64)
    width, tokens = config.width, int(lengths.sum())
    total = 2 * width * (width + config.vocab_size) * masked
    for place in layer_places(config):
        per_token = 8 * width**2 + mlp_flops(config, sparse=place.sparse)
        total += len(place.layers) * tokens * per_token
    return float(total) + mixing_flops(config, lengths)


def mixing_flops(config: ModelConfig, lengths: np.ndarray) -> float:
    """Count those FLOPs of a forward pass that tokens look at one another by.

    Args:
        config: the architecture.
        lengths: tokens of each text, padding not counted.
    """
    lengths, total = np.asarray(lengths, np.int64), 0
    for place in layer_places(config):
        window = config.local_window if place.local else None
        total += 4 * config.width * attended(lengths, window) * len(place.layers)
    return float(total)


def mlp_flops(config: ModelConfig, *, sparse: bool) -> int:
    """Count the FLOPs of one layer's MLP for a token, or of its experts and router."""
    width, products = config.width, 2 if config.activation == "gelu" else 3
    one = 2 * products * width * config.mlp_width
    if not sparse:
        return one
    return config.experts_per_token * one + 2 * width * config.num_experts


def attended(lengths: np.ndarray, window: int | None) -> int:
    """Count the pairs of tokens of which one looks at the other.

    Args:
        lengths: integers, tokens of each text.
        window: tokens to either side that one looks at; None: all of its text.
    """
    if window is None:
        return int((lengths**2).sum())
    # Less those that tokens near an end miss: 1 + 2 + ... + w on either side, as far as
    # the text is longer than that.
    near = np.minimum(window, lengths - 1)
    return int((lengths * (2 * near + 1) - near * (near + 1)).sum())


def flops_per_token(
    config: ModelConfig, arrays: MlmBatch | PairBatch | TaskBatch
) -> float:
    """Return the FLOPs of a training step, both ways, over the batch's tokens.

    What a classifier computes of a text is not counted: it is next to nothing.

    Args:
        config: the architecture.
        arrays: the batch, or this host's rows of it, on the host.
    """
    if isinstance(arrays, PairBatch):
        lengths, masked = np.asarray(arrays.texts.slot_lengths, np.int64), 0
    else:
        lengths = text_lengths(np.asarray(arrays.tokens.segment_ids))
        slots = arrays.masked if isinstance(arrays, TaskBatch) else arrays
        masked = 0 if slots is None else int(np.asarray(slots.weights).sum())
    forward = forward_flops(config, lengths, masked=masked)
    return 3 * forward / max(1, int(lengths.sum()))


def text_lengths(segment_ids: np.ndarray) -> np.ndarray:
    """Return the tokens of each text of rows of segments, in order.

    Args:
        segment_ids: integers [B, S]; a text is a run of equal ids in a row.
    """
    begins = np.diff(segment_ids, axis=1, prepend=-1) != 0
    first = np.flatnonzero(begins)
    lengths = np.diff(first, append=segment_ids.size)
    return lengths[segment_ids.reshape(-1)[first] != PADDING]


def device_memory() -> dict[str, float]:
    """Return the fullest local device's memory in GiB, empty where none is told.

    `memory` is the most that was ever in use, `memory_limit` what there is.
    """
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    told = [stats for stats in told if "peak_bytes_in_use" in stats]
    if not told:
        return {}
    fullest = max(told, key=lambda stats: stats["peak_bytes_in_use"])
    names = {"memory": "peak_bytes_in_use", "memory_limit": "bytes_limit"}
    return {ours: fullest[its] / 2**30 for ours, its in names.items() if its in fullest}
