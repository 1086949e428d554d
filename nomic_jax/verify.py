"""Does a folder embed as it should? Against its own fingerprint, and against PyTorch.

The fingerprint is a few texts and their embeddings, written when a folder is exported.
"""

import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nomic_jax.embedder import Embedder

FINGERPRINT = "fingerprint.json"
TEXTS = (
    "What is TSNE?",
    "Who is Laurens van der Maaten?",
    "t-SNE gives each point of a high-dimensional set a place on a map.",
    "def add(a, b):\n    return a + b",
    "¡Hola! Embeddings, naïve and otherwise; 12,345.67 € — ünïcödé.",
)
# What two orders of float32 summation, of up to 3,072 terms over 12 layers, may differ
# by; bfloat16 has 16 bits less.
MAX_DIFFERENCE = {"float32": 1e-5, "bfloat16": 2e-2}
MIN_COSINE = {"float32": 0.999999, "bfloat16": 0.9995}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far two sets of unit vectors of the same texts are apart."""

    against: str
    max_difference: float  # largest absolute difference of an entry
    min_cosine: float
    dtype: str  # of the matmuls, which decides what is tolerated

    @property
    def passed(self) -> bool:
        """Whether both figures are within what rounding explains."""
        return (
            self.max_difference <= MAX_DIFFERENCE[self.dtype]
            and self.min_cosine >= MIN_COSINE[self.dtype]
        )

    def __str__(self) -> str:
        """One line with the figures and the verdict."""
        return (
            f"{'ok  ' if self.passed else 'FAIL'} against {self.against}: largest "
            f"difference {self.max_difference:.1e}, lowest cosine {self.min_cosine:.7f}"
        )


def compare(
    ours: np.ndarray, theirs: np.ndarray, *, against: str, dtype: str
) -> Comparison:
    """Compare unit vectors row by row.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            f"embeddings are {ours.shape} here and {theirs.shape} in {against}"
        )
    return Comparison(
        against,
        float(np.abs(ours - theirs).max()),
        float(np.sum(ours.astype(np.float64) * theirs, axis=1).min()),
        dtype,
    )


def write_fingerprint(embedder: Embedder, folder: Path) -> None:
    """Write the embeddings of `TEXTS` beside a model."""
    task = next(iter(embedder.config.prompts))
    value = {
        "task": task,
        "texts": list(TEXTS),
        "embeddings": embedder.encode(list(TEXTS), task=task).tolist(),
    }
    (folder / FINGERPRINT).write_text(json.dumps(value) + "\n")


def check_fingerprint(embedder: Embedder, folder: Path) -> Comparison | None:
    """Embed the fingerprint's texts again; None where a folder has none.

    Raises:
        ValueError: the file is not a fingerprint.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
        texts, task = list(value["texts"]), value["task"]
        theirs = np.asarray(value["embeddings"], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a fingerprint: {error!r}") from error
    ours = embedder.encode(texts, task=task)
    return compare(ours, theirs, against=FINGERPRINT, dtype=embedder.model.dtype.name)


def check_torch(embedder: Embedder, folder: Path) -> Comparison:
    """Embed with transformers' NomicBert, from weights written in its layout.

    The PyTorch side shares only the tokenizer's ids and this project's writer: reading,
    the encoder and pooling are transformers' and PyTorch's own.

    Raises:
        ValueError: transformers finds tensors missing or left over.
    """
    import torch
    import transformers

    from nomic_jax.checkpoints.reader import read_checkpoint, without_head
    from nomic_jax.checkpoints.writer import write_checkpoint

    task = next(iter(embedder.config.prompts))
    prefix = embedder.config.prompts[task]
    with tempfile.TemporaryDirectory() as scratch:
        converted = Path(scratch) / "transformers"
        checkpoint = without_head(read_checkpoint(folder))
        write_checkpoint(checkpoint, converted, layout="transformers")
        model, loading = transformers.AutoModel.from_pretrained(
            converted, output_loading_info=True, attn_implementation="sdpa"
        )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise ValueError(f"transformers could not load the weights: {loading}")
    theirs = []
    model.eval()
    encoded = embedder.tokenizer.encode(
        [prefix + text for text in TEXTS], max_length=embedder.config.max_length
    )
    with torch.no_grad():
        for ids in encoded.ids:
            hidden = model(torch.from_numpy(ids.astype(np.int64))[None])[0]
            pooled = (
                hidden.mean(1) if embedder.config.pooling == "mean" else hidden[:, 0]
            )
            if embedder.config.layer_norm:
                pooled = torch.nn.functional.layer_norm(pooled, pooled.shape[1:])
            theirs.append(torch.nn.functional.normalize(pooled).numpy()[0])
    ours = embedder.encode(list(TEXTS), task=task)
    return compare(
        ours,
        np.stack(theirs),
        against="transformers on PyTorch",
        dtype=embedder.model.dtype.name,
    )


def comparisons(source: str) -> Iterator[Comparison]:
    """Yield every comparison that can be made here, saying on standard error what not.

    Args:
        source: a model folder of any layout, or a hub id.

    Raises:
        ValueError: the folder is no checkpoint, or nothing can be compared.
    """
    from nomic_jax.checkpoints.hub import resolve

    folder = resolve(source)
    embedder = Embedder.from_pretrained(source)
    found = check_fingerprint(embedder, folder)
    if found is None:
        print(f"{folder} has no {FINGERPRINT}", file=sys.stderr)
    else:
        yield found
    if importlib.util.find_spec("torch") is not None:
        yield check_torch(embedder, folder)
    elif found is None:
        raise ValueError(
            f"nothing to compare {folder} with: it has no {FINGERPRINT}, and PyTorch is "
            'not installed; run pip install "nomic-jax[torch]"'
        )
    else:
        print("PyTorch is not installed: not compared with it", file=sys.stderr)
