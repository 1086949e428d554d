"""Read a checkpoint of any known layout: every tensor and key is accounted for.

Tensors stay on disk until they are asked for, in the dtype they are stored in. Each
expected tensor is matched with a stored one, and all differences are reported at once.
"""

import dataclasses
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nomic_jax.checkpoints import sentence_transformers
from nomic_jax.checkpoints.config_json import read_config_keys, read_head
from nomic_jax.checkpoints.families.spec import (
    Family,
    Naming,
    Style,
    naming_of,
    native_style,
)
from nomic_jax.checkpoints.names import (
    Rule,
    TensorTarget,
    is_buffer,
    is_left_over,
    places,
    rules_for,
    tied_decoders,
)
from nomic_jax.checkpoints.problems import (
    CheckpointError,
    Problem,
    listing,
    read_folder_json,
)
from nomic_jax.checkpoints.sentence_transformers import PROJECTION_FOLDER, read_dense
from nomic_jax.checkpoints.tensors import StoredTensor, open_tensors
from nomic_jax.config import EmbeddingConfig, Head, ModelConfig
from nomic_jax.model.pooling import Projection

WORD_TABLE = "encoder.word_embedding.embedding"
HEAD_BIAS = "head.bias"  # the one parameter that files hold under two names


@dataclasses.dataclass
class TensorMatcher:
    """One pass over the tensors of a file, collecting problems."""

    config: ModelConfig
    stored: Mapping[str, StoredTensor]
    problems: list[Problem] = dataclasses.field(default_factory=list)
    stores_decoder: bool = False
    left_over: list[str] = dataclasses.field(default_factory=list)
    checked: set[str] = dataclasses.field(default_factory=set)
    prefix: str = ""  # that a published file's names of the encoder begin with

    def ours(self) -> dict[str, StoredTensor]:
        """Check a file of ours; return its parameters."""
        shapes = {
            rule.ours: rule.stacked_shape(self.config)
            for rule in rules_for(self.config)
        }
        for name in self.stored:
            if name not in shapes:
                self._problem("unused", name)
            else:
                self._check(name, shapes[name])
        for name in shapes:
            if name not in self.stored:
                self._problem("missing", name)
        return {name: self.stored[name] for name in shapes if name in self.stored}

    def published(self, naming: Naming) -> dict[str, StoredTensor]:
        """Check a published file; return our parameters, stacked when they are read.

        Args:
            naming: whose names the missing tensors are told by; all are read.
        """
        rules = rules_for(self.config, naming)
        known = places(rules, self.config)
        found: dict[tuple[str, int], list[tuple[TensorTarget, str]]] = defaultdict(list)
        decoders = []
        prefixes: Counter[str] = Counter()
        for name in self.stored:
            if name in tied_decoders(self.config):
                decoders.append(name)
            elif is_left_over(name, self.config):
                self.left_over.append(name)
            elif name in known:
                for place in known[name]:
                    found[place.rule.ours, place.index].append((place, name))
                    prefixes[_prefix(place)] += place.option.inside
            elif not is_buffer(name):
                self._problem("unused", name)
        if prefixes:
            self.prefix = prefixes.most_common(1)[0][0]
        tensors: dict[str, StoredTensor] = {}
        for rule in rules:
            layers = range(len(rule.layers) or 1)
            chosen = [self._chosen(rule, i, found[rule.ours, i]) for i in layers]
            if all(chosen):
                tensors[rule.ours] = self._stack(rule, chosen)
        if decoders:
            table = found[WORD_TABLE, 0]
            self._check_tied(decoders, table[0][1] if table else None)
        return tensors

    def _problem(self, kind: str, name: str, note: str = "") -> None:
        self.problems.append(Problem(kind, name, note))

    def _chosen(
        self, rule: Rule, index: int, found: list[tuple[TensorTarget, str]]
    ) -> list[tuple[TensorTarget, str]]:
        """Return the tensors that together are one layer of a parameter, in order."""
        layer = rule.layers[index] if rule.layers else 0
        needed = f"(needed for {rule.ours})"
        if not found:
            prefix = self.prefix if rule.options and rule.options[0].inside else ""
            for name in rule.options[0].names if rule.options else (rule.ours,):
                self._problem("missing", prefix + name.format(layer), needed)
            return []
        first = found[0]
        parts: dict[int, tuple[TensorTarget, str]] = {}
        for place, name in found:
            if place.source == first[0].source and place.part not in parts:
                parts[place.part] = (place, name)
            elif rule.ours != HEAD_BIAS or not self._equal(first[1], name):
                self._problem("twice", name, f"(also stored as {first[1]})")
        names = first[0].option.names
        shape = rule.shapes(self.config)[1]
        rows = shape[0] * first[0].option.share[1] // len(names)
        for part, name in enumerate(names):
            if part in parts:
                self._check(parts[part][1], (rows, *shape[1:]))
            else:
                name = _prefix(first[0]) + name.format(layer)
                self._problem("missing", name, needed)
        return [parts[part] for part in sorted(parts)]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.stored[name]
        if name not in self.checked:
            self.checked.add(name)
            self._check_values(name, tensor)
        if tensor.shape != shape:
            self._problem("shape", name, f"is {tensor.shape}, expected {shape}")

    def _check_values(self, name: str, tensor: StoredTensor) -> None:
        if isinstance(tensor.dtype, str):
            note = f"is {tensor.dtype}; float32, float16 or bfloat16 is needed"
            self._problem("dtype", name, note)
        elif not np.all(np.isfinite(values := tensor.read())):
            bad = int(np.sum(~np.isfinite(values)))
            note = f"has {bad} NaN or infinite values of {values.size}"
            self._problem("value", name, note)

    def _equal(self, first: str, second: str) -> bool:
        one, other = self.stored[first], self.stored[second]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        return isinstance(one.dtype, str) or one.read().tobytes() == (
            other.read().tobytes()
        )

    def _check_tied(self, decoders: list[str], table: str | None) -> None:
        self.stores_decoder = True
        for decoder in decoders:
            if self.config.head not in ("mlm", "pretraining"):
                self._problem("unused", decoder)
            elif table is not None and not self._equal(table, decoder):
                note = f"(differs from {table}; only a tied decoder is implemented)"
                self._problem("config", decoder, note)

    def _stack(
        self, rule: Rule, chosen: list[list[tuple[TensorTarget, str]]]
    ) -> StoredTensor:
        config, stored = self.config, self.stored
        dtypes = {stored[name].dtype for _, name in itertools.chain(*chosen)}
        if len(dtypes) > 1:
            shown = " and ".join(sorted(map(str, dtypes)))
            note = f"is {shown}; one dtype in all layers is needed"
            self._problem("dtype", chosen[0][0][0].option.names[0].format("*"), note)
        dtype = next(iter(dtypes))

        def one(layer: list[tuple[TensorTarget, str]]) -> np.ndarray:
            parts = [stored[name].read() for _, name in layer]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts)
            share, count = layer[0][0].option.share
            rows = len(array) // count
            return rule.to_ours(array[share * rows : (share + 1) * rows], config)

        def read() -> np.ndarray:
            if not rule.stacked:
                return one(chosen[0])
            array = np.empty(rule.stacked_shape(config), dtype)
            for index, layer in enumerate(chosen):
                array[index] = one(layer)
            return array

        return StoredTensor(rule.stacked_shape(config), dtype, read)


def _prefix(place: TensorTarget) -> str:
    """Return what is before the published name of a tensor that is there."""
    return place.source.removesuffix(str(place.option))


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
    """A model on disk: what it is, and its tensors under our names, stacked."""

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
        weights = sentence_transformers.transformer_folder(folder)
    values = read_folder_json(weights / "config.json")
    if values.get("format") == FORMAT:
        checkpoint = _read_ours(folder, values)
    else:
        checkpoint = _read_published(weights, values)
        checkpoint = dataclasses.replace(checkpoint, folder=folder)
    if (folder / EMBEDDING_FILE).is_file():
        path = folder / EMBEDDING_FILE
        try:
            embedding = EmbeddingConfig.from_json(read_folder_json(path))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
    elif (folder / "modules.json").is_file():
        embedding, projection = sentence_transformers.read_embedding(
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
    accounts = TensorMatcher(config, stored)
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
    accounts = TensorMatcher(config, stored)
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
