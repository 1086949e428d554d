"""A checkpoint's parameters as the tensors of a published file, one after the other."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nomic_jax.checkpoints.accounts import WORD_TABLE
from nomic_jax.checkpoints.families import Family, Style, family_of, naming_of
from nomic_jax.checkpoints.head_names import TIED
from nomic_jax.checkpoints.rules import Rule, rules_for
from nomic_jax.checkpoints.tensor_files import StoredTensor
from nomic_jax.config import ModelConfig

Specifications = dict[str, tuple[tuple[int, ...], np.dtype]]

# What stands before an encoder's names where a head is on it.
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
