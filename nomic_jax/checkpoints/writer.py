"""Write a checkpoint in any layout: a whole folder at once, or nothing."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from nomic_jax.checkpoints import rules, sentence_transformers_folder
from nomic_jax.checkpoints.config_keys import write_config_keys
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import (
    EMBEDDING_FILE,
    FORMAT,
    FORMAT_VERSION,
    Checkpoint,
    without_head,
)
from nomic_jax.checkpoints.tensor_files import write_tensors
from nomic_jax.config import EmbeddingConfig, ModelConfig, nearest
from nomic_jax.storage import write_json

Layout = Literal["jax", "nomic", "transformers", "sentence-transformers"]
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
        checkpoint = without_head(checkpoint)
    with new_folder(destination) as folder:
        for path in sources:
            shutil.copyfile(path, folder / path.name)
        if layout == "jax":
            _write_ours(checkpoint, folder)
        else:
            _write_published(checkpoint, folder, nomic=layout == "nomic")
        if layout == "sentence-transformers" and embedding is not None:
            sentence_transformers_folder.write_modules(
                folder, checkpoint.config, embedding, name=destination.name
            )
        elif embedding is not None:
            write_json(folder / EMBEDDING_FILE, embedding.to_json())


def tokenizer_files(folder: Path) -> list[Path]:
    """List the tokenizer's files that a model folder has."""
    places = [folder]
    if (folder / "modules.json").is_file():
        places.insert(0, sentence_transformers_folder.transformer_folder(folder))
    for place in places:
        found = [place / name for name in TOKENIZER_FILES if (place / name).is_file()]
        if found:
            return found
    return []


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


def _write_published(checkpoint: Checkpoint, folder: Path, *, nomic: bool) -> None:
    config = checkpoint.config
    values = write_config_keys(config, "nomic" if nomic else "transformers")
    dtype = checkpoint.tensors["encoder.word_embedding.embedding"].dtype
    values["torch_dtype" if nomic else "dtype"] = str(dtype)
    write_json(folder / "config.json", values)
    specifications = dict(_published_specifications(checkpoint, nomic=nomic))
    arrays = _published_arrays(checkpoint, specifications, nomic=nomic)
    write_tensors(folder / "model.safetensors", specifications, arrays)


def _written_rules(checkpoint: Checkpoint, *, nomic: bool) -> Iterator[tuple[Any, str]]:
    """Pair each rule with the name its tensor gets in a layout."""
    config = checkpoint.config
    with_biases = config.head is not None and not nomic  # transformers' head has them
    written = rules.rules_for(config)
    if with_biases and not config.head_bias:
        written += rules.HEAD_BIAS_RULES
    prefix = "" if config.head is None else "bert." if nomic else "nomic_bert."
    for rule in written:
        if rule.ours.startswith("encoder."):
            yield rule, prefix + rule.published
        elif nomic and rule.published == rules.HEAD_BIAS:
            yield rule, rules.DECODER_BIAS
        else:
            yield rule, rule.published


def _published_specifications(checkpoint: Checkpoint, *, nomic: bool):
    config, tensors = checkpoint.config, checkpoint.tensors
    for rule, name in _written_rules(checkpoint, nomic=nomic):
        source = tensors.get(rule.ours, tensors.get("head.dense.kernel"))
        assert source is not None
        layers = range(config.num_layers if rule.stacked else 1)
        for layer in layers:
            specification = (rule.shapes(config)[1], np.dtype(source.dtype))
            yield name.format(layer), specification
    if config.head is not None and nomic and checkpoint.stores_decoder:
        table = tensors["encoder.word_embedding.embedding"]
        yield rules.TIED_DECODER, (table.shape, np.dtype(table.dtype))


def _published_arrays(
    checkpoint: Checkpoint, specifications: Mapping[str, Any], *, nomic: bool
) -> Iterator[tuple[str, np.ndarray]]:
    config, tensors = checkpoint.config, checkpoint.tensors
    for rule, name in _written_rules(checkpoint, nomic=nomic):
        if rule.ours not in tensors:  # a bias that only the layout has
            yield name, np.zeros(*specifications[name])
            continue
        array = tensors[rule.ours].read()
        if not rule.stacked:
            yield name, rule.to_published(array, config)
            continue
        for layer in range(config.num_layers):
            yield name.format(layer), rule.to_published(array[layer], config)
    if rules.TIED_DECODER in specifications:
        table = tensors["encoder.word_embedding.embedding"]
        yield rules.TIED_DECODER, table.read()
