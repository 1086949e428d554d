"""Embeddings of many texts, made part by part: what is on disk is not made again.

Of several hosts, which share the folder, each embeds parts in turn.
"""

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax import hosts
from nomic_jax.storage import exists, join, read_bytes, write_bytes

PART = 50_000  # texts, of which a stopped run loses one part at most
POLL_SECONDS = 1.0


def embedded(
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Float32[np.ndarray, "texts E"]],
    folder: str,
    name: str,
) -> Float32[np.ndarray, "texts E"]:
    """Embed texts, or take what an earlier run left of the same ones.

    Every host calls it; each returns once all parts are there.

    Args:
        texts: in an order that does not change.
        encode: texts to rows.
        folder: of the parts, local or at a URL; whoever empties it vouches that texts
            and model are the same as before.
        name: of these texts in the folder.
    """
    starts = range(0, len(texts), PART)
    places = [join(folder, f"{name}-{n:05d}.npy") for n in range(len(starts))]
    parts = list(zip(starts, places, strict=True))
    for start, place in parts[hosts.number() :: hosts.count()]:
        if not exists(place):
            file = io.BytesIO()
            np.save(file, encode(texts[start : start + PART]))
            write_bytes(place, file.getvalue())
    out: np.ndarray | None = None
    for start, place in parts:
        while not exists(place):
            time.sleep(POLL_SECONDS)
        rows = np.load(io.BytesIO(read_bytes(place)))
        if out is None:
            out = np.empty((len(texts), rows.shape[1]), np.float32)
        out[start : start + len(rows)] = rows
    assert out is not None, "texts are there"
    return out
