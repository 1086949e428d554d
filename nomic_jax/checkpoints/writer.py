"""Write a checkpoint in any layout: a whole folder at once, or nothing.

Parameters are turned into published tensors one after the other, so that a model larger
than memory can be written.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from nomic_jax.checkpoints.config_json import (
    read_config_keys,
    read_head,
    write_config_keys,
)
from nomic_jax.checkpoints.families.spec import (
    Family,
    Style,
    family_of,
    naming_of,
    unsupported_by,
)
from nomic_jax.checkpoints.families.tensor_names import TIED
from nomic_jax.checkpoints.names import Rule, rules_for
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.reader import (
    EMBEDDING_FILE,
    FORMAT,
    FORMAT_VERSION,
    WORD_TABLE,
    Checkpoint,
    without_head,
)
from nomic_jax.checkpoints.sentence_transformers import (
    NO_FACTS,
    PROJECTION_FOLDER,
    CardFacts,
    tokenizer_folder,
    write_dense,
    write_modules,
)
from nomic_jax.checkpoints.tensors import StoredTensor, write_tensors
from nomic_jax.config import (
    EmbeddingConfig,
    ModelConfig,
    did_you_mean,
    differing_fields,
)
from nomic_jax.storage import write_json

Specifications = dict[str, tuple[tuple[int, ...], np.dtype]]
# What is before an encoder's names where a head is on it.
_PREFIXES: Mapping[Family, str] = {
    "nomic_bert": "nomic_bert.",
    "bert": "bert.",
    "xlm-roberta": "roberta.",
    "modernbert": "model.",
}


def as_written(config: ModelConfig, style: Style) -> ModelConfig:
    """Return the config of what a layout's classes have, which may be more.

    transformers' MLM head has biases, and its BERT and XLM-R a pooler; where a model
    has none they are written as zeros, and marked in config.json.
    """
    family = family_of(config)
    if style == "nomic":
        return config
    if family == "nomic_bert" and config.head == "mlm":
        return dataclasses.replace(config, head_bias=True)
    if family in ("bert", "xlm-roberta") and config.head is None:
        return dataclasses.replace(config, head="pooler")
    return config


class PublishedTensors:
    """The tensors of a published file: their shapes, and the arrays when asked for."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, StoredTensor],
        style: Style,
        *,
        stores_decoder: bool,
    ):
        """Lay the file out.

        Args:
            config: the model's.
            tensors: our parameters.
            style: of the layout.
            stores_decoder: Nomic's layout gets the tied decoder under its own name.
        """
        self.config = as_written(config, style)
        self.tensors = tensors
        self.added = {
            rule.ours for rule in rules_for(self.config) if rule.ours not in tensors
        }
        bare = self.config.head in (None, "pooler")
        family = family_of(config)
        naming = naming_of(config, style)
        self.prefix = "" if bare else "bert." if style == "nomic" else _PREFIXES[family]
        groups: dict[object, list[Rule]] = defaultdict(list)
        for rule in rules_for(self.config, naming):
            groups[rule.options[0].names, rule.layers].append(rule)
        # Shares of the same tensor, in the order of its rows.
        self.groups = [
            sorted(group, key=lambda rule: rule.options[0].share)
            for group in groups.values()
        ]
        self.decoder = None
        if (
            style == "nomic"
            and stores_decoder
            and config.head in ("mlm", "pretraining")
        ):
            self.decoder = f"{TIED[naming]}.weight"

    def specifications(self) -> Specifications:
        """Return the shape and dtype of every tensor of the file."""
        found: Specifications = {}
        for group in self.groups:
            shape = group[0].shapes(self.config)[1]
            names = group[0].options[0].names
            rows = shape[0] * len(group) // len(names)
            for layer in group[0].layers or (0,):
                for name in self._names(group, layer):
                    found[name] = ((rows, *shape[1:]), self._dtype(group))
        if self.decoder is not None:
            table = self.tensors[WORD_TABLE]
            found[self.decoder] = (table.shape, np.dtype(table.dtype))
        return found

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every tensor once; those of one parameter at a time are in memory."""
        for group in self.groups:
            held = [self._read(rule) for rule in group]
            for index, layer in enumerate(group[0].layers or (0,)):
                shares = [
                    rule.to_published(array[index], self.config)
                    for rule, array in zip(group, held, strict=True)
                ]
                whole = shares[0] if len(shares) == 1 else np.concatenate(shares)
                names = self._names(group, layer)
                yield from zip(names, np.split(whole, len(names)), strict=True)
        if self.decoder is not None:
            yield self.decoder, self.tensors[WORD_TABLE].read()

    def _names(self, group: Sequence[Rule], layer: int) -> list[str]:
        option = group[0].options[0]
        prefix = self.prefix if option.inside else ""
        return [prefix + name.format(layer) for name in option.names]

    def _dtype(self, group: Sequence[Rule]) -> np.dtype:
        return np.dtype(self.tensors.get(group[0].ours, self.tensors[WORD_TABLE]).dtype)

    def _read(self, rule: Rule) -> np.ndarray:
        """Return a parameter with its layers on a leading axis."""
        if rule.ours in self.added:
            shape = rule.stacked_shape(self.config)
            array = np.zeros(shape, self._dtype([rule]))
        else:
            array = self.tensors[rule.ours].read()
        return array if rule.stacked else array[None]


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
    `embedding.json` next to what they define. An MLM head does not go into the
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
            f"unknown layout {layout!r}: {did_you_mean(layout, get_args(Layout))}"
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
        style = "nomic" if unsupported_by(config, "transformers") else "transformers"
    else:
        style = layout
    reasons = unsupported_by(config, style)
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
