"""Batches of texts to vectors, the device kept at work.

While it computes a batch, the next ones are tokenized and laid out on a thread; and a
batch's vectors are waited for once another has been sent.
"""

import collections
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float32

from nomic_jax.ahead import ahead
from nomic_jax.batch import PackedTexts
from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.text_batches import TextBatch
from nomic_jax.model.attention_mesh import on_devices_of
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.pooling import embed_packed, matryoshka
from nomic_jax.model.projection import Projection
from nomic_jax.own_devices import spread_rows

AHEAD = 8  # batches that lie ready on the host


def text_vectors(
    model: NomicBert,
    projection: Projection | None,
    config: EmbeddingConfig,
    batches: Iterator[TextBatch],
    *,
    dim: int,
    normalize: bool,
) -> Iterator[tuple[TextBatch, Float32[np.ndarray, "texts E"]]]:
    """Yield batches with the vectors of their texts.

    Args:
        model: whole on this host's devices, or on one.
        projection: a layer after pooling.
        config: how hidden states become a vector.
        batches: made on a thread of their own, some of them ahead.
        dim: entries of a vector.
        normalize: scale vectors to unit length.
    """
    cut = _cut if normalize else _sliced
    sent = collections.deque[tuple[TextBatch, jax.Array]]()

    def fetched() -> tuple[TextBatch, np.ndarray]:
        batch, vectors = sent.popleft()
        return batch, np.asarray(vectors).reshape(-1, dim)[batch.slots]

    for batch in ahead(batches, room=AHEAD):
        texts = spread_rows(batch.texts, model)
        with on_devices_of(model):
            pooled = _pooled(model, projection, texts, config)
        sent.append((batch, cut(pooled, dim)))
        if len(sent) > 1:
            yield fetched()
    while sent:
        yield fetched()


@functools.partial(jax.jit, static_argnums=3)
def _pooled(
    model: NomicBert,
    projection: Projection | None,
    texts: PackedTexts,
    config: EmbeddingConfig,
) -> Float32[Array, "B T width"]:
    pooled = embed_packed(model(texts.tokens), texts, config)
    return pooled if projection is None else projection(pooled)


# Compiled apart from the encoder, so that another dimension costs no new encoder.
_cut = jax.jit(matryoshka, static_argnums=1)
_sliced = jax.jit(lambda pooled, dim: pooled[..., :dim], static_argnums=1)
