"""A model as the package `mteb` takes it, with the prompts of Nomic's own results.

    mteb.evaluate(MtebModel.from_pretrained("nomic-ai/nomic-embed-text-v1.5"), tasks)

Prompts, length and normalisation are those of Nomic Embed's evaluation
(arXiv:2402.01613, section 5.3); MTEB is of Muennighoff et al. 2022 (arXiv:2210.07316).
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32

from nomic_jax.evaluation.measurement import check_dims
from nomic_jax.evaluation.prompts import prefix_of
from nomic_jax.inference.embedder import Embedder
from nomic_jax.storage import name_of

LENGTH = 512  # tokens that the published results were measured with
UNNORMALIZED = ("Classification", "MultilabelClassification")
BLANK = "."  # stands for a text without any character, of a model without prompts


def prompt_of(
    prompts: Mapping[str, str], *, task_type: str, name: str, prompt_type: Any = None
) -> str:
    """Choose what is put before the texts of a task of MTEB.

    It is `prefix_of`'s choice, but that Quora's documents are questions too, and get
    the query's.

    Args:
        prompts: of the model, by name.
        task_type: `Retrieval`, `STS` and so on.
        name: of the task.
        prompt_type: mteb's `query` or `document`, where a task tells them apart.
    """
    role = getattr(prompt_type, "value", prompt_type)
    quora = task_type == "Retrieval" and "quora" in name.lower()
    return prefix_of(prompts, task_type, "query" if quora else role)


class MtebModel:
    """An embedder behind mteb's encoder protocol."""

    def __init__(self, embedder: Embedder, name: str, *, dim: int | None = None):
        """Wrap an embedder.

        Args:
            embedder: its `max_length` is where texts are cut.
            name: `OWNER/NAME`, under which mteb keeps results. Results are told apart
                by a digest of all that embeddings depend on too, and by dimension.
            dim: Matryoshka dimension; None: the full width.

        Raises:
            ValueError: mteb is not installed, or the model has no such dimension or no
                prompt of queries and documents.
        """
        config = embedder.config
        check_dims(embedder, () if dim is None else (dim,))
        for task in ("search_query", "search_document"):
            config.prompt(task)
        self.prompts, self.dim = config.prompts, dim
        # Prompts are put before texts here, as they do not follow from one task's name.
        self.embedder = embedder.replaced(
            config=dataclasses.replace(config, prompts={"as it stands": ""})
        )
        identity = json.dumps(embedder.fingerprint(), sort_keys=True).encode()
        meta = _mteb("models.model_meta")
        self.mteb_model_meta = meta.ModelMeta.create_empty(
            {
                "name": name,
                "revision": hashlib.blake2b(identity, digest_size=16).hexdigest(),
                "max_tokens": config.max_length,
                "embed_dim": dim or embedder.width,
                "framework": ["JAX"],
                "similarity_fn_name": meta.ScoringFunction.COSINE,
                "use_instructions": any(self.prompts.values()),
                "experiment_kwargs": {
                    "dim": dim or embedder.width,
                    "max_length": config.max_length,
                },
            }
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        dim: int | None = None,
        max_length: int | None = None,
        rotary_scaling_factor: float | None = None,
    ) -> "MtebModel":
        """Load a model folder of any known layout, or a checkpoint by its hub id.

        Args:
            source: as `Embedder.from_pretrained` takes it.
            name: under which mteb keeps results; None: `nomic_jax/` and the source's.
            dim: Matryoshka dimension; None: the full width.
            max_length: tokens of the longest text; None: 512, or the model's own
                maximum where that is less.
            rotary_scaling_factor: alpha of Dynamic NTK, for texts beyond the trained
                length.

        Raises:
            ValueError: as `Embedder.from_pretrained` and `__init__` have it.
        """
        embedder = Embedder.from_pretrained(
            source, max_length=max_length, rotary_scaling_factor=rotary_scaling_factor
        )
        if max_length is None and embedder.config.max_length > LENGTH:
            shorter = dataclasses.replace(embedder.config, max_length=LENGTH)
            embedder = embedder.replaced(config=shorter)
        return cls(embedder, name or f"nomic_jax/{name_of(source)}", dim=dim)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        precision: str = "float32",
        show_progress_bar: bool = False,
        **unused: Any,
    ) -> Float32[np.ndarray, "texts E"]:
        """Embed the texts of a task, as mteb calls for it.

        Args:
            inputs: batches with a column `text`; of documents, title and text joined.
            task_metadata: the task's, with its type and name.
            hf_split: of the data; it changes nothing.
            hf_subset: likewise.
            prompt_type: `query` or `document` where a task tells them apart.
            precision: `float32`.
            show_progress_bar: with tokens per second and the time left.
            unused: such as `batch_size`; batches are made of texts of equal length.

        Returns:
            Unit vectors, but of classification, whose vectors keep their length.

        Raises:
            ValueError: another precision is asked for.
        """
        if precision != "float32":
            raise ValueError(
                f"precision={precision!r}: embeddings are float32 here; `nomic-jax "
                "evaluate` measures int8 and binary ones"
            )
        prompt = prompt_of(
            self.prompts,
            task_type=task_metadata.type,
            name=task_metadata.name,
            prompt_type=prompt_type,
        )
        texts = [prompt + text for batch in inputs for text in batch["text"]]
        return self.embedder.encode(
            [text if text.strip() else BLANK for text in texts],
            task="as it stands",
            dim=self.dim,
            normalize=task_metadata.type not in UNNORMALIZED,
            progress=show_progress_bar,
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each embedding with each other one."""
        return _mteb("similarity_functions").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each embedding with the one next to it."""
        return _mteb("similarity_functions").pairwise_cos_sim(embeddings1, embeddings2)


def _mteb(module: str) -> ModuleType:
    """Import a module of mteb.

    Raises:
        ValueError: it is not installed; the line says how to install it.
    """
    try:
        return importlib.import_module(f"mteb.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"mteb needs {error.name}, which is not installed; run "
            'pip install "nomic-jax[mteb]"'
        ) from error
