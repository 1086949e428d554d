"""An encoder is told what computes its attention, and a caller what that comes to."""

from collections.abc import Sequence

from nomic_jax.data.packing import texts_per_row
from nomic_jax.model.attention_backend import (
    AttentionBackend,
    Case,
    Setting,
    check_backend,
    describe,
)
from nomic_jax.model.encoder import NomicBert
from nomic_jax.tokenizer import BUCKETS


def set_attention(
    encoder: NomicBert,
    backend: AttentionBackend,
    *,
    rows: Sequence[tuple[int, int | None]],
    devices: int,
) -> str:
    """Set what computes an encoder's attention, and return what that comes to.

    Args:
        encoder: whose attention it is.
        backend: a name, or `auto`.
        rows: columns of those that will come up, ascending, and the most texts that
            each holds; None: any number.
        devices: that compute a batch together.

    Raises:
        ValueError: there is no such backend, or it cannot compute such rows.
    """
    check_backend(backend)
    config, local = encoder.config, encoder.config.local_window
    cases = [
        Case.of(
            Setting(backend=backend, platform=encoder.platform, texts=texts),
            str(encoder.dtype),
            head_width=config.head_width,
            length=length,
            window=window,
            devices=devices,
        )
        for window in ((None,) if local is None else (None, local))
        for length, texts in rows
    ]
    said = describe(backend, cases)
    encoder.backend = backend
    return said


def for_embedding(
    encoder: NomicBert, backend: AttentionBackend, max_length: int, devices: int
) -> str:
    """Set what computes attention in `Embedder`, and return what that comes to.

    Args:
        encoder: whose attention it is.
        backend: a name, or `auto`.
        max_length: tokens of the longest text.
        devices: that compute a batch together.

    Raises:
        ValueError: there is no such backend, or it cannot compute such rows.
    """
    lengths = [length for length in BUCKETS if length < max_length]
    lengths.append(max_length)
    rows = [(length, texts_per_row(length)) for length in lengths]
    return set_attention(encoder, backend, rows=rows, devices=devices)
