"""Read a checkpoint of any known layout: every tensor and key is accounted for.

Tensors stay on the disk until they are asked for, in the dtype they are stored in.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nomic_jax.checkpoints import sentence_transformers_folder
from nomic_jax.checkpoints.accounts import Accounts
from nomic_jax.checkpoints.config_keys import native_style, read_config_keys
from nomic_jax.checkpoints.json_files import read_json
from nomic_jax.checkpoints.problems import CheckpointError, Problem, listing
from nomic_jax.checkpoints.tensor_files import StoredTensor, open_tensors
from nomic_jax.config import EmbeddingConfig, ModelConfig

FORMAT, FORMAT_VERSION = "nomic_jax", 1
EMBEDDING_FILE = "embedding.json"
_SIZED = ("word_embeddings.weight", ".fc11.weight", ".up_proj.weight")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on the disk: what it is, and its tensors under our names, stacked."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    embedding: EmbeddingConfig | None  # None: the folder says nothing about it
    # Whether Nomic's layout holds the tied decoder under a name of its own. Upstream
    # loads hub files strictly and wants it; a published file without it stays without.
    stores_decoder: bool = True


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder of this project, Nomic, transformers or sentence-transformers.

    The style of the config's keys and that of the tensors' names are recognised
    independently. Every value is read once, to see that it is finite.

    Args:
        folder: holds config.json and model.safetensors, the same in shards, or .bin.

    Raises:
        CheckpointError: the folder is no such checkpoint, or parts of it are missing,
            unused, given twice, mis-shaped, not finite or not implemented: all of them
            are in the one message.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    weights = folder
    embedding = None
    if (folder / "modules.json").is_file():
        weights = sentence_transformers_folder.transformer_folder(folder)
    values = read_json(weights / "config.json")
    if values.get("format") == FORMAT:
        checkpoint = _read_ours(folder, values)
    else:
        checkpoint = _read_published(weights, values)
        checkpoint = dataclasses.replace(checkpoint, folder=folder)
    if (folder / EMBEDDING_FILE).is_file():
        path = folder / EMBEDDING_FILE
        try:
            embedding = EmbeddingConfig.from_json(read_json(path))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
    elif (folder / "modules.json").is_file():
        embedding = sentence_transformers_folder.read_embedding(
            folder, checkpoint.config
        )
    return dataclasses.replace(checkpoint, embedding=embedding)


def without_head(checkpoint: Checkpoint) -> Checkpoint:
    """Keep the encoder alone."""
    return dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(checkpoint.config, head=None, head_bias=False),
        tensors={
            name: tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith("encoder.")
        },
    )


def _read_ours(folder: Path, values: Mapping[str, Any]) -> Checkpoint:
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}/config.json has format_version "
            f"{values.get('format_version')!r}; this version reads {FORMAT_VERSION}"
        )
    try:
        config = ModelConfig.from_json(values.get("model", {}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None
    stored, problems = open_tensors(folder)
    accounts = Accounts(config, stored)
    tensors = accounts.ours()
    problems += accounts.problems
    _refuse(folder, config, problems)
    decoder = bool(values.get("stores_decoder", True))
    return Checkpoint(folder, config, tensors, None, decoder)


def _read_published(folder: Path, values: Mapping[str, Any]) -> Checkpoint:
    kind = values.get("model_type", "nomic_bert")
    if kind != "nomic_bert":
        raise CheckpointError(
            f"{folder} is a model of type {kind!r}; only 'nomic_bert' can be read"
        )
    if values.get("num_experts"):
        raise CheckpointError(
            f"{folder} is a mixture of {values['num_experts']} experts; only dense "
            "NomicBERT models can be read"
        )
    fields, problems = read_config_keys(values)
    stored, file_problems = open_tensors(folder)
    architectures = " ".join(map(str, values.get("architectures") or ()))
    fields |= _from_tensors(fields, values, stored)
    if "MaskedLM" in architectures or "PreTraining" in architectures:
        fields["head"] = "mlm"
    try:
        config = ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        if not problems:
            problems.append(Problem("config", str(error)))
        _refuse(folder, None, problems + file_problems)
        raise AssertionError from None
    accounts = Accounts(config, stored)
    tensors = accounts.published()
    _refuse(folder, config, problems + file_problems + accounts.problems)
    config, tensors = _drop_marked_bias(config, tensors, values)
    decoder = accounts.stores_decoder or native_style(values)
    return Checkpoint(folder, config, tensors, None, decoder)


def _from_tensors(fields, values, stored) -> dict[str, Any]:
    """Find what the tensors decide: the head, and sizes that upstream rounds up."""
    names = [name for name in stored if name.startswith("cls.predictions.")]
    found: dict[str, Any] = {"head": "mlm" if names else None}
    found["head_bias"] = any(
        name.endswith(".bias") and "layer_norm" not in name for name in names
    )
    rows = {
        name.rsplit(".", 2)[-2]: tensor.shape[0]
        for name, tensor in stored.items()
        if tensor.shape and name.endswith(_SIZED)
    }
    words, given = rows.get("word_embeddings"), fields.get("vocab_size")
    multiple = values.get("pad_vocab_size_multiple") or 1
    if words and isinstance(given, int) and -(-given // multiple) * multiple == words:
        found["vocab_size"] = words
    hidden, given = rows.get("fc11", rows.get("up_proj")), fields.get("mlp_width")
    if given is None and isinstance(fields.get("width"), int):
        found["mlp_width"] = given = int(8 * fields["width"] / 3)
    if hidden and isinstance(given, int) and -(-given // 256) * 256 == hidden:
        found["mlp_width"] = hidden
    return found


def _drop_marked_bias(config, tensors, values):
    """Undo what the transformers layout adds to a head without biases: zeros."""
    names = [name for name in ("head.dense.bias", "head.bias") if name in tensors]
    if values.get("nomic_jax_head_bias", True) or not names:
        return config, tensors
    if any(np.any(tensors[name].read()) for name in names):
        return config, tensors  # trained since
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    return dataclasses.replace(config, head_bias=False), kept


def _refuse(folder: Path, config: ModelConfig | None, problems: list[Problem]) -> None:
    if not problems:
        return
    what = "a NomicBERT model"
    if config is not None:
        sizes = "num_layers width num_heads mlp_width vocab_size head".split()
        shown = ", ".join(f"{name}={getattr(config, name)!r}" for name in sizes)
        what = f"ModelConfig({shown})"
    raise CheckpointError(listing(f"{folder} does not match {what}:", problems))
