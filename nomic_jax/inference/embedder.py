"""`Embedder`: a model, its tokenizer and its prompts; texts in, unit vectors out.

While the device computes a batch, the next ones are tokenized and packed on a thread; a
batch's vectors are waited for once another batch has been sent.
"""

import collections
import dataclasses
import functools
import json
import logging
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float32

from nomic_jax.batch import PackedTexts
from nomic_jax.checkpoints.embedding import describe, embedding_for
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.model_folder import build
from nomic_jax.checkpoints.reader import read_checkpoint, without_head
from nomic_jax.checkpoints.sentence_transformers import tokenizer_folder
from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.packing import texts_per_row
from nomic_jax.data.tokenizer import BUCKETS, TextTokenizer
from nomic_jax.distributed import devices
from nomic_jax.distributed.devices import (
    digest,
    num_devices,
    replicate_on_local_devices,
    spread_rows,
)
from nomic_jax.inference.batching import (
    BatchShape,
    OnTooLong,
    TextBatch,
    text_batches,
    tokenize,
)
from nomic_jax.model.attention.backends import AttentionBackend
from nomic_jax.model.attention.mesh import on_devices_of
from nomic_jax.model.encoder import NomicBert, set_attention
from nomic_jax.model.pooling import Projection, embed_packed, matryoshka

if TYPE_CHECKING:
    from tqdm import tqdm


Item = TypeVar("Item")


def prefetch(items: Iterator[Item], *, buffer_size: int) -> Generator[Item]:
    """Yield the same items in the same order, so many of them made before they are due.

    It helps where making an item lets other threads work meanwhile, as the tokenizer
    and NumPy do. An error among the items is raised where its item was due. A caller
    that stops early waits for the item that is being made, and no other is begun.

    Args:
        items: none of them None.
        buffer_size: of items that wait to be taken.
    """
    with ThreadPoolExecutor(1) as worker:
        coming = collections.deque(
            worker.submit(next, items, None) for _ in range(buffer_size)
        )
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(worker.submit(next, items, None))
                yield item
        finally:
            worker.shutdown(wait=False, cancel_futures=True)


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

    for batch in prefetch(batches, buffer_size=AHEAD):
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


logger = logging.getLogger(__name__)


class Embedder:
    """Embeds texts with one model, following its published conventions."""

    def __init__(
        self,
        model: NomicBert,
        tokenizer: TextTokenizer,
        config: EmbeddingConfig,
        *,
        projection: Projection | None = None,
        tokens_per_batch: int | None = None,
    ):
        """Put a model, a tokenizer and the embedding's conventions together.

        Args:
            model: the encoder.
            tokenizer: the one the model was trained with.
            config: pooling, prompts, lengths.
            projection: a dense layer after pooling, for a model that has one.
            tokens_per_batch: of a device, padding included, which bounds memory; a
                longer text is a batch of its own. None suits the machine.

        Raises:
            ValueError: the tokenizer or the maximum length does not fit the model.
        """
        if tokenizer.size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.size} tokens and the model's table "
                f"{model.config.vocab_size} rows; they do not belong together"
            )
        trained = model.config.trained_positions
        over = f"max_length={config.max_length} exceeds the"
        if config.max_length > trained and model.config.rope_scaling_factor is None:
            stretch = "rotary_scaling_factor=2.0, the published choice, stretches them"
            if model.config.rope_base is None:
                stretch = "they are absolute, and nothing stretches them"
            over += f" {trained} positions the model was trained on"
            raise ValueError(f"{over}; {stretch}")
        if config.max_length > BUCKETS[-1]:
            raise ValueError(f"{over} longest row, {BUCKETS[-1]}")
        self.width = model.config.width if projection is None else projection.width
        if wide := [dim for dim in config.matryoshka_dims if dim > self.width]:
            raise ValueError(f"matryoshka_dims {wide} exceed the width {self.width}")
        self.model = model
        self.projection = projection
        self.tokenizer = tokenizer
        self.config = config
        self.tokens_per_batch = tokens_per_batch or devices.default_tokens_per_batch()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        max_length: int | None = None,
        rotary_scaling_factor: float | None = None,
        dtype: devices.Dtype | None = None,
        attention: AttentionBackend = "auto",
    ) -> "Embedder":
        """Load a model folder of any known layout, or a checkpoint by its hub id.

        Compiled programs are kept on disk between processes unless JAX has been given a
        compilation cache of its own.

        Args:
            source: a folder of this project, Nomic, transformers or
                sentence-transformers, or a hub id.
            max_length: tokens of the longest text, special ones included; None takes
                the folder's. Beyond the trained length it needs the next argument.
            rotary_scaling_factor: alpha of Dynamic NTK; None takes the folder's.
            dtype: of the matmuls; None is bfloat16 on GPU and TPU, float32 on CPU.
            attention: what computes it; `auto` or the name of a backend.

        Raises:
            ValueError: the folder is not a whole checkpoint, or the length or the type
                is refused.
        """
        devices.keep_compiled_programs()
        folder = resolve(source)
        checkpoint = without_head(read_checkpoint(folder))
        if rotary_scaling_factor is not None:
            stretched = dataclasses.replace(
                checkpoint.config, rope_scaling_factor=rotary_scaling_factor
            )
            checkpoint = dataclasses.replace(checkpoint, config=stretched)
        chosen = embedding_for(source, checkpoint)
        logger.info("embedding: %s (%s)", describe(chosen.config), chosen.reason)
        config = chosen.config
        if max_length is not None:
            config = dataclasses.replace(config, max_length=max_length)
        model = build(checkpoint, dtype=devices.chosen_dtype(dtype))
        assert isinstance(model, NomicBert)
        tokenizer = TextTokenizer.from_folder(tokenizer_folder(folder))
        model, projection = replicate_on_local_devices((model, checkpoint.projection))
        said = for_embedding(model, attention, config.max_length, num_devices(model))
        logger.info("attention: %s", said)
        return cls(model, tokenizer, config, projection=projection)

    def encode_query(
        self, texts: Sequence[str], *, dim: int | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "texts E"]:
        """Embed search queries; see `encode`."""
        return self.encode(texts, task="search_query", dim=dim, progress=progress)

    def encode_document(
        self, texts: Sequence[str], *, dim: int | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "texts E"]:
        """Embed documents to be searched; see `encode`."""
        return self.encode(texts, task="search_document", dim=dim, progress=progress)

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str,
        dim: int | None = None,
        normalize: bool = True,
        on_too_long: OnTooLong = "cut",
        progress: bool = False,
    ) -> Float32[np.ndarray, "texts E"]:
        """Embed texts as unit vectors, in input order.

        Args:
            texts: at least one visible character each; the task's prefix is put before
                them here.
            task: a name of the model's prompts, such as `search_query`, `clustering`.
            dim: Matryoshka dimension, None for the full width.
            normalize: scale to unit length; without it the vector is cut alone, as
                classifiers on embeddings are evaluated.
            on_too_long: `cut` shortens texts over the maximum length and warns once
                with their number; `error` refuses them.
            progress: show a bar with the tokens per second and the time left.

        Returns:
            Rows of length 1, unless `normalize` is off.

        Raises:
            ValueError: the task or the dimension is not the model's, a text is empty,
                or one is too long and `on_too_long` is `error`.
        """
        from tqdm import tqdm

        width = self._checked_dim(dim)
        parts = tokenize(
            texts,
            self.tokenizer,
            prefix=self.config.prompt(task),
            max_length=self.config.max_length,
            on_too_long=on_too_long,
        )
        out = np.empty((len(texts), width), np.float32)
        # Counted in tokens: the longest texts come first, so texts would speed up.
        with tqdm(unit="token", unit_scale=True, disable=not progress) as bar:
            for batch, vectors in text_vectors(
                self.model,
                self.projection,
                self.config,
                self._batches(parts, len(texts), bar),
                dim=width,
                normalize=normalize,
            ):
                out[batch.members] = vectors
                bar.update(batch.num_tokens)
        return out

    def _batches(
        self, parts: Iterator[list[np.ndarray]], count: int, bar: "tqdm"
    ) -> Iterator[TextBatch]:
        def counted() -> Iterator[list[np.ndarray]]:
            texts = tokens = 0
            for part in parts:
                texts += len(part)
                tokens += sum(map(len, part))
                bar.total = tokens * count // texts  # as if the rest were like these
                yield part

        shape = BatchShape(
            max_length=self.config.max_length,
            max_tokens=self.tokens_per_batch,
            devices=num_devices(self.model),
        )
        return text_batches(counted(), shape, pad_id=self.model.config.pad_token_id)

    def replaced(
        self, *, model: NomicBert | None = None, config: EmbeddingConfig | None = None
    ) -> "Embedder":
        """Return an embedder with another model or configuration, the rest the same."""
        return Embedder(
            model or self.model,
            self.tokenizer,
            config or self.config,
            projection=self.projection,
            tokens_per_batch=self.tokens_per_batch,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what embeddings depend on as JSON; weights as their digest."""
        part = self.projection
        found = {
            "weights": digest(self.model),
            "projection": part and [digest(part), part.activation],
            "tokenizer": self.tokenizer.digest,
            "model": self.model.config.to_json(),
            "embedding": self.config.to_json(),
            "dtype": str(self.model.dtype),
        }
        return json.loads(json.dumps(found))  # tuples to lists, as it is read back

    def _checked_dim(self, dim: int | None) -> int:
        known = sorted({self.width, *self.config.matryoshka_dims})
        if dim is not None and dim not in known:
            dims = ", ".join(map(str, known))
            raise ValueError(f"dim={dim} is not one the model was trained for: {dims}")
        return self.width if dim is None else dim
