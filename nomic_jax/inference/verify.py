"""Does a folder embed as it should? Against its own fingerprint, and against PyTorch.

The fingerprint is a few texts and their embeddings, written when a folder is exported.
"""

import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32

from nomic_jax.checkpoints.reader import FINGERPRINT_FILE as FINGERPRINT
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.encoder import NomicBert
from nomic_jax.storage import join, write_bytes

TEXTS = (
    "What is TSNE?",
    "Who is Laurens van der Maaten?",
    "t-SNE gives each point of a high-dimensional set a place on a map.",
    "def add(a, b):\n    return a + b",
    "¡Hola! Embeddings, naïve and otherwise; 12,345.67 € — ünïcödé.",
)
# Of 1 / sqrt(width), the typical entry. Float32 sums in another order, on the published
# weights, are 5e-6 of it apart; one row of one layer's QKV scaled by 1.01, 6e-5.
TOLERANCE = 3e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far two sets of unit vectors of the same texts are apart."""

    against: str
    difference: float  # the largest, of an entry
    allowed: float
    cosine: float  # the lowest

    @property
    def passed(self) -> bool:
        """Whether the difference is within what rounding explains."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        """One line with the verdict and the figures."""
        return (
            f"{'ok  ' if self.passed else 'FAIL'} against {self.against}: largest "
            f"difference {self.difference:.1e} of {self.allowed:.1e} allowed, lowest "
            f"cosine {self.cosine:.7f}"
        )


def compare(ours: np.ndarray, theirs: np.ndarray, *, against: str) -> Comparison:
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
        TOLERANCE / ours.shape[1] ** 0.5,
        float(np.sum(ours.astype(np.float64) * theirs, axis=1).min()),
    )


def in_float32(embedder: Embedder) -> Embedder:
    """Return an embedder of the same weights whose matmuls run in float32."""
    config = embedder.model.config
    shapes = jax.eval_shape(lambda: NomicBert(config, rngs=nnx.Rngs(0)))
    model = jax.tree.unflatten(
        jax.tree.structure(shapes), jax.tree.leaves(embedder.model)
    )
    return Embedder(
        model, embedder.tokenizer, embedder.config, projection=embedder.projection
    )


def embed_exactly(
    embedder: Embedder, texts: Sequence[str], task: str
) -> Float32[np.ndarray, "texts E"]:
    """Embed in float32 proper, which accelerators only approximate by default."""
    with jax.default_matmul_precision("highest"):
        return in_float32(embedder).encode(texts, task=task)


def write_fingerprint(embedder: Embedder, folder: str | Path) -> None:
    """Write the embeddings of `TEXTS` next to a model, in float32 whatever it runs in.

    Args:
        embedder: of the live model, so that a wrong export does not match.
        folder: where that model was exported to.
    """
    task = next(iter(embedder.config.prompts))
    value = {
        "task": task,
        "texts": list(TEXTS),
        "embeddings": embed_exactly(embedder, TEXTS, task).tolist(),
    }
    write_bytes(join(folder, FINGERPRINT), f"{json.dumps(value)}\n".encode())


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
    ours = embed_exactly(embedder, texts, task)
    return compare(ours, theirs, against=FINGERPRINT)


def check_torch(embedder: Embedder, folder: Path) -> Comparison:
    """Embed with transformers' own class, from weights written in its layout.

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
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        converted = Path(scratch) / "transformers"
        checkpoint = without_head(read_checkpoint(folder))
        write_checkpoint(checkpoint, converted, layout="transformers")
        model, loading = transformers.AutoModel.from_pretrained(
            converted, output_loading_info=True, dtype=torch.float32
        )
    wrong = {what: sorted(map(str, names)) for what, names in loading.items() if names}
    if wrong:
        raise ValueError(f"transformers did not load {folder} as it is: {wrong}")
    theirs = []
    model.eval()
    encoded = embedder.tokenizer.encode(
        [prefix + text for text in TEXTS], max_length=embedder.config.max_length
    )
    with torch.no_grad():
        for ids in encoded.ids:
            hidden = model(torch.from_numpy(ids.astype(np.int64))[None])[0]
            pooled = {
                "mean": hidden.mean(1),
                "cls": hidden[:, 0],
                "last": hidden[:, -1],
            }[embedder.config.pooling]
            if embedder.config.layer_norm:
                pooled = torch.nn.functional.layer_norm(pooled, pooled.shape[1:])
            if checkpoint.projection is not None:
                pooled = _projected(pooled, checkpoint.projection)
            theirs.append(torch.nn.functional.normalize(pooled).numpy()[0])
    ours = embed_exactly(embedder, TEXTS, task)
    return compare(ours, np.stack(theirs), against="transformers on PyTorch")


def _projected(pooled, projection):
    import torch

    kernel = torch.from_numpy(np.array(projection.kernel[...]))
    out = pooled @ kernel
    if projection.bias is not None:
        out = out + torch.from_numpy(np.array(projection.bias[...]))
    return torch.tanh(out) if projection.activation == "tanh" else out


def comparisons(source: str) -> Iterator[Comparison]:
    """Yield every comparison that can be made here, saying on standard error what not.

    Args:
        source: a model folder of any layout, or a hub id.

    Raises:
        ValueError: the folder is not a checkpoint, or nothing can be compared.
    """
    from nomic_jax.checkpoints.families.spec import unsupported_by
    from nomic_jax.checkpoints.hub import resolve

    folder = resolve(source)
    embedder = Embedder.from_pretrained(source, dtype="float32")
    found = check_fingerprint(embedder, folder)
    if found is None:
        print(f"{folder} has no {FINGERPRINT}", file=sys.stderr)
    else:
        yield found
    missing = unsupported_by(embedder.model.config, "transformers")
    if importlib.util.find_spec("torch") is None:
        missing.append('PyTorch is not installed: pip install "nomic-jax[torch]"')
    if not missing:
        yield check_torch(embedder, folder)
    elif found is None:
        raise ValueError(
            f"nothing to compare {folder} with: it has no {FINGERPRINT}; "
            + "; ".join(missing)
        )
    else:
        print("not compared with PyTorch: " + "; ".join(missing), file=sys.stderr)
