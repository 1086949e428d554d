"""Read a checkpoint of any known layout: every tensor and key is accounted for.

Tensors stay on the disk until they are asked for, in the dtype they are stored in.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nomic_jax.checkpoints import sentence_transformers_folder
from nomic_jax.checkpoints.accounts import Accounts
from nomic_jax.checkpoints.config_families import native_style
from nomic_jax.checkpoints.config_keys import read_config_keys
from nomic_jax.checkpoints.dense_folder import PROJECTION_FOLDER, read_dense
from nomic_jax.checkpoints.families import Family, Style, naming_of
from nomic_jax.checkpoints.head_keys import read_head
from nomic_jax.checkpoints.json_files import read_json
from nomic_jax.checkpoints.problems import CheckpointError, Problem, listing
from nomic_jax.checkpoints.tensor_files import StoredTensor, open_tensors
from nomic_jax.config import EmbeddingConfig, Head, ModelConfig
from nomic_jax.model.projection import Projection

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "nomic_jax", 1
EMBEDDING_FILE = "embedding.json"
FINGERPRINT_FILE = "fingerprint.json"  # embeddings of a few texts, for `verify`
STYLES: tuple[Style, Style] = ("nomic", "transformers")
# Fields of a config that say what sits on the encoder, not what the encoder is.
HEAD_FIELDS = frozenset(
    "head head_bias labels problem head_pooling head_dropout".split()
)
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
    projection: Projection | None = None  # a dense layer between pooling and embedding


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
    embedding, projection = None, None
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
        embedding, projection = sentence_transformers_folder.read_embedding(
            folder, checkpoint.config
        )
    if (folder / PROJECTION_FOLDER).is_dir():
        width = checkpoint.config.width
        projection = read_dense(folder / PROJECTION_FOLDER, width)
    return dataclasses.replace(checkpoint, embedding=embedding, projection=projection)


def headless(config: ModelConfig) -> ModelConfig:
    """Return the config of the encoder alone."""
    plain = {
        field.name: field.default
        for field in dataclasses.fields(ModelConfig)
        if field.name in HEAD_FIELDS
    }
    return dataclasses.replace(config, **plain)


def without_head(checkpoint: Checkpoint, *, pooler: bool = False) -> Checkpoint:
    """Keep the encoder alone.

    Args:
        checkpoint: of any head.
        pooler: keep BERT's pooler too where there is one.
    """
    kept = ("encoder.",)
    head: Head | None = None
    if pooler and "pooler.kernel" in checkpoint.tensors:
        kept, head = ("encoder.", "pooler."), "pooler"
    return dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(headless(checkpoint.config), head=head),
        tensors={
            name: tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(kept)
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
    family = values.get("model_type", "nomic_bert")
    if family not in get_args(Family):
        known = ", ".join(get_args(Family))
        raise CheckpointError(
            f"{folder} is a model of type {family!r}; known are: {known}"
        )
    fields, problems = read_config_keys(values, family)
    stored, file_problems = open_tensors(folder)
    head, head_problems = read_head(values, fields, list(stored), family)
    fields |= _from_tensors(fields, values, stored) | head
    problems += file_problems + head_problems
    try:
        config = ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        # A field that is missing, or None, has been told already, by its key.
        if not problems or isinstance(error, ValueError):
            problems.append(Problem("config", str(error)))
        _refuse(folder, None, problems)
        raise AssertionError from None
    native = family != "nomic_bert" or native_style(values)
    accounts = Accounts(config, stored)
    tensors = accounts.published(naming_of(config, STYLES[native]))
    _refuse(folder, config, problems + accounts.problems)
    if accounts.left_over:
        names = ", ".join(accounts.left_over)
        logger.info(
            "%s: left out, as head=%r does not read it: %s", folder, config.head, names
        )
    config, tensors = _drop_marked(config, tensors, values)
    decoder = accounts.stores_decoder or native
    return Checkpoint(folder, config, tensors, None, decoder)


def _from_tensors(fields, values, stored) -> dict[str, Any]:
    """Find the sizes that upstream rounds up, which only the tensors tell."""
    found: dict[str, Any] = {}
    rows = {
        name.rsplit(".", 2)[-2]: tensor.shape[0]
        for name, tensor in stored.items()
        if tensor.shape and name.endswith(_SIZED)
    }
    words, given = rows.get("word_embeddings"), fields.get("vocab_size")
    multiple = values.get("pad_vocab_size_multiple") or 1
    if words and isinstance(given, int) and -(-given // multiple) * multiple == words:
        found["vocab_size"] = words
    width, given = fields.get("width"), fields.get("mlp_width")
    if fields.get("activation") == "gelu":
        if given is None and isinstance(width, int):
            found["mlp_width"] = 4 * width
        return found
    hidden = rows.get("fc11", rows.get("up_proj"))
    if given is None and isinstance(width, int):
        found["mlp_width"] = given = int(8 * width / 3)
    if hidden and isinstance(given, int) and -(-given // 256) * 256 == hidden:
        found["mlp_width"] = hidden
    return found


def _drop_marked(config, tensors, values):
    """Undo what the transformers layout adds to a model: biases and poolers of zeros.

    What was trained since is no longer zero, and stays.
    """
    for mark, parts, plain in (
        ("nomic_jax_head_bias", ("head.dense.bias", "head.bias"), {"head_bias": False}),
        ("nomic_jax_pooler", ("pooler.kernel", "pooler.bias"), {"head": None}),
    ):
        names = [name for name in parts if name in tensors]
        if values.get(mark, True) or not names:
            continue
        if not any(np.any(tensors[name].read()) for name in names):
            tensors = {name: t for name, t in tensors.items() if name not in names}
            config = dataclasses.replace(config, **plain)
    return config, tensors


def _refuse(folder: Path, config: ModelConfig | None, problems: list[Problem]) -> None:
    if not problems:
        return
    what = "any known model"
    if config is not None:
        sizes = "num_layers width num_heads mlp_width vocab_size head".split()
        sizes += ["num_experts"] if config.num_experts else []
        shown = ", ".join(f"{name}={getattr(config, name)!r}" for name in sizes)
        what = f"ModelConfig({shown})"
    raise CheckpointError(listing(f"{folder} does not match {what}:", problems))
