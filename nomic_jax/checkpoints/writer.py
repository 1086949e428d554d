"""Write a checkpoint in any layout: a whole folder at once, or nothing."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from nomic_jax.checkpoints.accounts import WORD_TABLE
from nomic_jax.checkpoints.config_keys import read_config_keys
from nomic_jax.checkpoints.dense_folder import PROJECTION_FOLDER, write_dense
from nomic_jax.checkpoints.families import Style, family_of, no_place
from nomic_jax.checkpoints.head_keys import read_head
from nomic_jax.checkpoints.model_card import NO_FACTS, CardFacts
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.published_tensors import PublishedTensors
from nomic_jax.checkpoints.reader import (
    EMBEDDING_FILE,
    FORMAT,
    FORMAT_VERSION,
    Checkpoint,
    without_head,
)
from nomic_jax.checkpoints.sentence_transformers_folder import tokenizer_folder
from nomic_jax.checkpoints.tensor_files import write_tensors
from nomic_jax.checkpoints.write_keys import write_config_keys
from nomic_jax.checkpoints.write_modules import write_modules
from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.fields import differing_fields, nearest
from nomic_jax.storage import write_json

Layout = Literal["jax", "nomic", "transformers", "sentence-transformers"]
# Where the classes are that load Nomic's own layout in PyTorch.
_CODE = "nomic-ai/nomic-bert-2048--{}_hf_nomic_bert.NomicBert{}"
REMOTE_CODE = {
    "AutoConfig": _CODE.format("configuration", "Config"),
    "AutoModel": _CODE.format("modeling", "Model"),
}
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "added_tokens.json"),
)


def write_checkpoint(
    checkpoint: Checkpoint,
    destination: Path,
    *,
    layout: Layout,
    embedding: EmbeddingConfig | None = None,
    facts: CardFacts = NO_FACTS,
    extra_files: Sequence[Path] = (),
) -> None:
    """Write a checkpoint, its tensors in their own dtypes, and its tokenizer's files.

    One parameter at a time is in memory. The `nomic` and `transformers` layouts get
    `embedding.json` beside what they define. An MLM head does not go into the
    sentence-transformers layout, which has no place for one.

    Args:
        checkpoint: what to write.
        destination: a folder that does not exist yet.
        layout: `nomic` has the published names and GPT-2's config keys; `transformers`
            the same names with transformers' keys, as its own save writes them.
        embedding: written instead of the checkpoint's own.
        facts: what the card of a sentence-transformers folder says of the training.
        extra_files: what else goes into the folder, such as a fingerprint.

    Raises:
        ValueError: the destination exists, the layout is unknown, or what it needs is
            missing.
    """
    destination = Path(destination)
    embedding = embedding or checkpoint.embedding
    if layout not in get_args(Layout):
        raise ValueError(
            f"unknown layout {layout!r}: {nearest(layout, get_args(Layout))}"
        )
    refuse_existing(destination)
    sources = tokenizer_files(checkpoint.folder)
    if layout == "sentence-transformers":
        if embedding is None:
            raise CheckpointError(
                f"{checkpoint.folder} does not say how its embeddings are made; a "
                "sentence-transformers folder must: name the pooling"
            )
        if not any(path.name in ("tokenizer.json", "vocab.txt") for path in sources):
            raise CheckpointError(
                f"{checkpoint.folder} has no tokenizer (tokenizer.json or vocab.txt); "
                "a sentence-transformers folder needs one"
            )
        # Of what no embedding reads, what transformers' class of the family has.
        pooled = family_of(checkpoint.config) in ("bert", "xlm-roberta")
        checkpoint = without_head(checkpoint, pooler=pooled)
    style = style_of(checkpoint.config, layout)
    with new_folder(destination) as folder:
        for path in (*sources, *extra_files):
            shutil.copyfile(path, folder / path.name)
        if style is None:
            _write_ours(checkpoint, folder)
        else:
            remote = layout == "sentence-transformers" and style == "nomic"
            _write_published(checkpoint, folder, style, remote=remote)
        if layout == "sentence-transformers" and embedding is not None:
            write_modules(
                folder,
                checkpoint.config,
                embedding,
                checkpoint.projection,
                name=destination.name,
                facts=facts,
                remote=style == "nomic",
            )
            return
        if embedding is not None:
            write_json(folder / EMBEDDING_FILE, embedding.to_json())
        if checkpoint.projection is not None:
            write_dense(folder / PROJECTION_FOLDER, checkpoint.projection)


def style_of(config: ModelConfig, layout: Layout) -> Style | None:
    """Return whose names and keys a layout has; None for ours.

    sentence-transformers reads transformers' files; of what transformers has no class
    for, it gets Nomic's, which come with code of their own.

    Raises:
        CheckpointError: the layout has no place for such a model.
    """
    if layout == "jax":
        return None
    if layout == "sentence-transformers":
        style = "nomic" if no_place(config, "transformers") else "transformers"
    else:
        style = layout
    reasons = no_place(config, style)
    if reasons:
        raise CheckpointError(
            f"a {family_of(config)} model with head={config.head!r} cannot be written "
            f"--to {layout}: {'; '.join(reasons)}"
        )
    return style


def tokenizer_files(folder: Path) -> list[Path]:
    """List the tokenizer's files that a model folder has."""
    place = tokenizer_folder(folder)
    return [place / name for name in TOKENIZER_FILES if (place / name).is_file()]


def refuse_existing(destination: Path) -> None:
    """Refuse to write over anything.

    Raises:
        ValueError: something of that name exists.
    """
    if os.path.lexists(destination):
        raise ValueError(
            f"{destination} exists; nothing is written over: remove it, or name another"
        )


@contextlib.contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Give a temporary sibling folder that takes the destination's name at the end.

    Whatever interrupts the writing, the destination is then not there.

    Raises:
        ValueError: the destination exists.
    """
    refuse_existing(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}.")
    folder = Path(made)
    try:
        yield folder
        mask = os.umask(0)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)  # mkdtemp's are for their owner alone
        os.replace(folder, destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def model_config_json(config: ModelConfig, *, stores_decoder: bool) -> dict[str, Any]:
    """Spell the config.json of our own layout."""
    values = {"format": FORMAT, "format_version": FORMAT_VERSION}
    extra = {"stores_decoder": stores_decoder} if config.head is not None else {}
    return {**values, "model": config.to_json(), **extra}


def _write_ours(checkpoint: Checkpoint, folder: Path) -> None:
    values = model_config_json(
        checkpoint.config, stores_decoder=checkpoint.stores_decoder
    )
    write_json(folder / "config.json", values)
    tensors = checkpoint.tensors
    write_tensors(
        folder / "model.safetensors",
        {name: (t.shape, np.dtype(t.dtype)) for name, t in tensors.items()},
        ((name, tensor.read()) for name, tensor in tensors.items()),
    )


def _write_published(
    checkpoint: Checkpoint, folder: Path, style: Style, *, remote: bool = False
) -> None:
    config = checkpoint.config
    published = PublishedTensors(
        config, checkpoint.tensors, style, stores_decoder=checkpoint.stores_decoder
    )
    values = write_config_keys(published.config, style)
    specifications = published.specifications()
    _check_kept(published.config, values, list(specifications), style)
    for name, mark in (("head.bias", "head_bias"), ("pooler.bias", "pooler")):
        if name in published.added:
            values[f"nomic_jax_{mark}"] = False
    dtype = checkpoint.tensors[WORD_TABLE].dtype
    values["torch_dtype" if style == "nomic" else "dtype"] = str(dtype)
    if remote:
        values["auto_map"] = REMOTE_CODE
    write_json(folder / "config.json", values)
    write_tensors(folder / "model.safetensors", specifications, published.arrays())


def _check_kept(
    config: ModelConfig, values: dict[str, Any], names: list[str], style: Style
) -> None:
    """Refuse to write a config.json that would be read as another model's."""
    fields, problems = read_config_keys(values, values["model_type"])
    head, more = read_head(values, fields, names, values["model_type"])
    again = ModelConfig(**{**fields, **head}).to_json()
    lost = differing_fields(config.to_json(), again, words="{}={!r}")
    if lost or problems or more:
        said = [*lost, *(f"{one.name} {one.note}" for one in problems + more)]
        raise CheckpointError(
            f"the {style} layout has no place for {', '.join(said)}; use --to jax"
        )
