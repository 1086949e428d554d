"""An encoder is told what computes its attention, and a caller what that comes to."""

from collections.abc import Sequence

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
    lengths: Sequence[int],
    texts: int | None,
    devices: int,
) -> str:
    """Set what computes an encoder's attention, and return what that comes to.

    Args:
        encoder: whose attention it is.
        backend: a name, or `auto`.
        lengths: columns of the rows that will come up, ascending.
        texts: the most that a row holds; None: any number.
        devices: that compute a batch together.

    Raises:
        ValueError: there is no such backend, or it cannot compute such rows.
    """
    check_backend(backend)
    config, local = encoder.config, encoder.config.local_window
    setting = Setting(backend=backend, platform=encoder.platform, texts=texts)
    cases = [
        Case.of(
            setting,
            str(encoder.dtype),
            head_width=config.head_width,
            length=length,
            window=window,
            devices=devices,
        )
        for window in ((None,) if local is None else (None, local))
        for length in lengths
    ]
    said = describe(backend, cases)
    encoder.backend = backend
    return said


def for_embedding(
    encoder: NomicBert, backend: AttentionBackend, max_length: int, devices: int
) -> str:
    """Set what computes the attention of single texts, and return what that comes to.

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
    return set_attention(encoder, backend, lengths=lengths, texts=1, devices=devices)
