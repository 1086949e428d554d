"""Embeddings of many texts, made part by part: what is on disk is not made again.

Of several hosts, which share the folder, each embeds parts in turn.
"""

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax.distributed import hosts
from nomic_jax.storage import exists, join, read_bytes, write_bytes

PART = 50_000  # texts, of which a stopped run loses one part at most
POLL_SECONDS = 1.0


def embed_parts(
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Float32[np.ndarray, "texts E"]],
    folder: str,
    name: str,
) -> None:
    """Embed texts into a folder, but for the parts that an earlier run left there.

    Every host calls it, and embeds its share.

    Args:
        texts: in an order that does not change.
        encode: texts to rows.
        folder: of the parts, local or at a URL; whoever empties it vouches that texts
            and model are the same as before.
        name: of these texts in the folder.
    """
    parts = list(enumerate(range(0, len(texts), PART)))
    for number, start in parts[hosts.number() :: hosts.count()]:
        place = _place(folder, name, number)
        if not exists(place):
            file = io.BytesIO()
            np.save(file, encode(texts[start : start + PART]))
            write_bytes(place, file.getvalue())


def read_parts(rows: int, folder: str, name: str) -> Float32[np.ndarray, "rows E"]:
    """Read what all hosts embed, waiting for those that are not done.

    One host calls it: what it has read it may delete.

    Args:
        rows: how many texts there are.
        folder: of the parts.
        name: of the texts in the folder.
    """
    out: np.ndarray | None = None
    for number, start in enumerate(range(0, rows, PART)):
        place = _place(folder, name, number)
        while not exists(place):
            time.sleep(POLL_SECONDS)
        part = np.load(io.BytesIO(read_bytes(place)))
        if out is None:
            out = np.empty((rows, part.shape[1]), np.float32)
        out[start : start + len(part)] = part
    assert out is not None, "texts are there"
    return out


def _place(folder: str, name: str, number: int) -> str:
    return join(folder, f"{name}-{number:05d}.npy")
