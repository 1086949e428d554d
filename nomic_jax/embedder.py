"""`Embedder`: a model, its tokenizer and conventions; texts in, unit vectors out."""

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from nomic_jax.batch import Tokens
from nomic_jax.checkpoints.embedding_rule import describe, embedding_for
from nomic_jax.checkpoints.folder import build
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.reader import read_checkpoint, without_head
from nomic_jax.config import EmbeddingConfig, nearest
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.pooling import embed, normalize
from nomic_jax.tokenizer import BUCKETS, TextTokenizer, bucket, pad

OnTooLong = Literal["cut", "error"]

TOKENS_PER_BATCH = 16_384  # padding included; keeps 2 CPU cores busy within 1 GB

logger = logging.getLogger(__name__)


class Embedder:
    """Embeds texts with one model, following its published conventions."""

    def __init__(
        self,
        model: NomicBert,
        tokenizer: TextTokenizer,
        config: EmbeddingConfig,
        *,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ):
        """Put a model, a tokenizer and the embedding's conventions together.

        Args:
            model: the encoder.
            tokenizer: the one the model was trained with.
            config: pooling, prompts, lengths.
            tokens_per_batch: tokens of a batch, padding included, which bounds memory.

        Raises:
            ValueError: the tokenizer or the maximum length does not fit the model.
        """
        if tokenizer.size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.size} tokens and the model's table "
                f"{model.config.vocab_size} rows; they do not belong together"
            )
        trained = model.config.trained_positions
        if config.max_length > trained and model.config.rope_scaling_factor is None:
            raise ValueError(
                f"max_length={config.max_length} exceeds the {trained} positions the "
                "model was trained on; set rope_scaling_factor (2.0 is the published "
                "choice) to stretch them"
            )
        if config.max_length > BUCKETS[-1]:
            raise ValueError(
                f"max_length={config.max_length} exceeds the longest row, {BUCKETS[-1]}"
            )
        wide = [dim for dim in config.matryoshka_dims if dim > model.config.width]
        if wide:
            raise ValueError(
                f"matryoshka_dims {wide} exceed the model's width {model.config.width}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        max_length: int | None = None,
        rotary_scaling_factor: float | None = None,
        dtype: str | None = None,
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

        Raises:
            ValueError: the folder is not a whole checkpoint, or the length is refused.
        """
        keep_compiled_programs()
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
        model = build(checkpoint, dtype=dtype or default_dtype())
        assert isinstance(model, NomicBert)
        return cls(model, TextTokenizer.from_folder(folder), config)

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
        on_too_long: OnTooLong = "cut",
        progress: bool = False,
    ) -> Float32[np.ndarray, "texts E"]:
        """Embed texts as unit vectors, in input order.

        Args:
            texts: at least one visible character each; the task's prefix is put before
                them here.
            task: a name of the model's prompts, such as `search_query`, `clustering`.
            dim: Matryoshka dimension, None for the full width.
            on_too_long: `cut` shortens texts over the maximum length and warns once
                with their number; `error` refuses them.
            progress: show a bar with the texts per second and the time left.

        Returns:
            Rows of length 1.

        Raises:
            ValueError: the task or the dimension is not the model's, a text is empty,
                or one is too long and `on_too_long` is `error`.
        """
        from tqdm import tqdm

        width = self._checked_dim(dim)
        rows = self._tokenize(texts, self._checked_prefix(task), on_too_long)
        out = np.empty((len(rows), width), np.float32)
        with tqdm(total=len(rows), unit="text", disable=not progress) as bar:
            pending = collections.deque()
            for members, tokens in self._batches(rows):
                pending.append(
                    (members, _embed(self.model, tokens, self.config, width))
                )
                if len(pending) > 1:  # the next batch is under way: this one is awaited
                    bar.update(_collect(out, *pending.popleft()))
            while pending:
                bar.update(_collect(out, *pending.popleft()))
        return out

    def encoders(
        self, query_prefix: str, document_prefix: str
    ) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
        """Return what embeds a source's queries and documents, by their prefixes.

        Raises:
            ValueError: a prefix is no task's prompt.
        """
        query, document = self.task_of(query_prefix), self.task_of(document_prefix)
        return (
            functools.partial(self.encode, task=query),
            functools.partial(self.encode, task=document),
        )

    def task_of(self, prefix: str) -> str:
        """Name the task whose prompt is this prefix.

        Raises:
            ValueError: no task has it.
        """
        for task, prompt in self.config.prompts.items():
            if prompt == prefix:
                return task
        raise ValueError(
            f"no task has the prefix {prefix!r}: "
            f"{nearest(prefix, self.config.prompts.values())}"
        )

    def _checked_prefix(self, task: str) -> str:
        if task not in self.config.prompts:
            raise ValueError(
                f"unknown task {task!r}: {nearest(task, self.config.prompts)}"
            )
        return self.config.prompts[task]

    def _checked_dim(self, dim: int | None) -> int:
        full = self.model.config.width
        dims = self.config.matryoshka_dims or (full,)
        if dim is not None and dim != full and dim not in dims:
            raise ValueError(
                f"dim={dim} is not one the model was trained for: "
                f"{', '.join(str(d) for d in sorted({*dims, full}))}"
            )
        return full if dim is None else dim

    def _tokenize(
        self, texts: Sequence[str], prefix: str, on_too_long: OnTooLong
    ) -> list[np.ndarray]:
        if isinstance(texts, str):
            raise ValueError(
                "texts is one string; give a list, [text] for a single one"
            )
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(texts)} texts hold no visible character, the "
                f"first at index {empty[0]}; leave them out"
            )
        limit = self.config.max_length
        encoded = self.tokenizer.encode([prefix + t for t in texts], max_length=limit)
        if encoded.cut and on_too_long == "error":
            raise ValueError(
                f"{len(encoded.cut)} of {len(texts)} texts exceed {limit} tokens, the "
                f"first at index {encoded.cut[0]}; cut them, or allow cutting"
            )
        if encoded.cut:
            logger.warning(
                "cut %d of %d texts to %d tokens", len(encoded.cut), len(texts), limit
            )
        return encoded.ids

    def _batches(
        self, rows: Sequence[np.ndarray]
    ) -> Iterator[tuple[Sequence[int], Tokens]]:
        """Yield batches of similar length, longest first, with their rows' places.

        Shapes come from few: a length of `BUCKETS` by a power of two of rows.
        """
        lengths = [min(bucket(len(row)), self.config.max_length) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        start = 0
        while start < len(order):
            length = lengths[order[start]]
            most = 1 << max(self.tokens_per_batch // length, 1).bit_length() - 1
            members = order[start : start + most]
            # Texts that fit a shorter bucket wait for it, unless they complete this row
            # count: an empty row costs as much as a padded one.
            fitting = sum(lengths[i] == length for i in members)
            count = 1 << (fitting - 1).bit_length()
            members = members[:count]
            texts = [rows[i] for i in members]
            yield (
                members,
                pad(
                    texts,
                    length=length,
                    rows=count,
                    pad_id=self.model.config.pad_token_id,
                ),
            )
            start += len(members)


def _collect(
    out: np.ndarray, members: Sequence[int], vectors: Float32[Array, "B E"]
) -> int:
    """Put a batch's vectors where their texts stood; return how many."""
    out[list(members)] = np.asarray(vectors)[: len(members)]
    return len(members)


def _embed_rows(
    model: NomicBert, tokens: Tokens, config: EmbeddingConfig, width: int
) -> Float32[Array, "B E"]:
    hidden = model(tokens)
    pooled = embed(hidden, jnp.asarray(tokens.mask), config)
    return normalize(pooled[:, :width])


_embed = jax.jit(_embed_rows, static_argnums=(2, 3))


def default_dtype() -> str:
    """Return the type matmuls run in here: bfloat16 on GPU and TPU, float32 on CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk, unless it was told where already.

    The folder is `nomic_jax/xla` under the user's cache folder (`XDG_CACHE_HOME`).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "nomic_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
