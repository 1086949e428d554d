"""The rules of a config: its parameters, and the published tensors each is made of.

A published linear weight is `[out, in]`, ours `[in, out]` with the heads of attention
as axes of their own; ours are stacked over the layers that are scanned together.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nomic_jax.checkpoints import encoder_names, head_names
from nomic_jax.checkpoints.families import Family, family_of
from nomic_jax.checkpoints.row import Naming, Published, Row
from nomic_jax.config import ModelConfig
from nomic_jax.model.layers import layer_places

# Whose names a file of each family may have. The first is what this project calls it.
NAMINGS: dict[Family, tuple[Naming, ...]] = {
    "nomic_bert": ("nomic", "nomic_bert", "nomic_bert in memory"),
    "bert": ("bert", "nomic"),
    "xlm-roberta": ("xlm-roberta", "nomic"),
    "modernbert": ("modernbert",),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of parameter. Axes are spelt in letters, of one layer."""

    ours: str
    axes: str
    published_axes: str
    options: tuple[Published, ...]  # names it may have; the first is written
    layers: tuple[int, ...] = ()  # published ones it holds, in order; empty: it has one
    stacked: bool = False  # over its layers, on a leading axis

    @property
    def published(self) -> str:
        """The names that are written, for a reader."""
        return str(self.options[0]) if self.options else ""

    def shapes(self, config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of one layer: ours, and the published."""
        sizes = _sizes(config)
        ours = tuple(sizes[letter] for letter in self.axes.split())
        published = tuple(
            math.prod(sizes[letter] for letter in axis.split("."))
            for axis in self.published_axes.split()
        )
        return ours, published

    def stacked_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Return the shape of our parameter, all its layers in one array."""
        shape = self.shapes(config)[0]
        return (len(self.layers), *shape) if self.stacked else shape

    def to_ours(self, array: np.ndarray, config: ModelConfig) -> np.ndarray:
        """Turn one published tensor into ours of one layer."""
        sizes, split = _sizes(config), self.published_axes.replace(".", " ").split()
        order = [split.index(letter) for letter in self.axes.split()]
        return array.reshape([sizes[letter] for letter in split]).transpose(order)

    def to_published(self, array: np.ndarray, config: ModelConfig) -> np.ndarray:
        """Turn ours of one layer into the published tensor."""
        split, ours = self.published_axes.replace(".", " ").split(), self.axes.split()
        array = array.transpose([ours.index(letter) for letter in split])
        return array.reshape(self.shapes(config)[1])


@functools.lru_cache(maxsize=64)
def _sizes(config: ModelConfig) -> dict[str, int]:
    classes = {"question_answering": 2, "next_sentence": 2, "pretraining": 2}
    return {
        "V": config.vocab_size,
        "T": config.type_vocab_size,
        "P": config.first_position + config.trained_positions,
        "D": config.width,
        "d": config.width,
        "F": config.mlp_width,
        "H": config.num_heads,
        "K": config.head_width,
        "3": 3,
        "E": config.num_experts,
        "N": len(config.labels) or classes.get(config.head or "", 1),
    }


def rules_for(config: ModelConfig, naming: Naming | None = None) -> tuple[Rule, ...]:
    """Return the rules of a config.

    Args:
        config: of any family and head.
        naming: whose names are written, the first option of each rule; by default the
            family's own. Other names follow; where a naming has none for a parameter,
            those are all.
    """
    known = NAMINGS[family_of(config)]
    others: list[Naming] = [other for other in known if other != naming]
    order = known if naming is None else (naming, *others)
    return tuple(_encoder_rules(config, order)) + tuple(_head_rules(config, order))


def _encoder_rules(config: ModelConfig, order: Sequence[Naming]) -> Iterator[Rule]:
    names = encoder_names
    tables = [names.WORD_TABLE, *_norms(config, names.EMBEDDING_NORM)]
    if config.type_vocab_size:
        tables.append(names.TYPE_TABLE)
    if config.rope_base is None:
        tables.append(names.POSITION_TABLE)
    if config.pre_norm:
        tables += _norms(config, names.FINAL_NORM)
    for row in tables:
        yield _rule(row, f"encoder.{row.ours}", _options(row, order))
    gated = names.PLAIN if config.activation == "gelu" else names.GATED
    for place in layer_places(config):
        rows = [row for row in names.ATTENTION if _biased(row, config.bias)]
        if place.attention_norm:
            rows += _norms(config, names.ATTENTION_NORM)
        if place.sparse:
            rows += names.EXPERTS
            rows += [names.EXPERT_BIAS] if config.expert_bias else []
        else:
            rows += [row for row in gated if _biased(row, config.bias)]
        rows += _norms(config, names.MLP_NORM)
        for row in rows:
            options = tuple(
                _in_layer(row, naming) for naming in order if naming in row.names
            )
            rule = _rule(row, f"encoder.{place.path}.{row.ours}", options)
            yield dataclasses.replace(rule, layers=place.layers, stacked=place.stacked)


def _head_rules(config: ModelConfig, order: Sequence[Naming]) -> Iterator[Rule]:
    for row in _head_rows(config):
        yield _rule(row, row.ours, _options(row, order))


def _head_rows(config: ModelConfig) -> list[Row]:
    names, head = head_names, config.head
    rows: list[Row] = []
    masked = head in ("mlm", "pretraining")
    roberta = head == "sequence_classification" and family_of(config) == "xlm-roberta"
    if masked or (config.pre_norm and head):
        dense, norm = names.TRANSFORM[:2], names.TRANSFORM[2:]
        biases = config.head_bias and config.norm_bias
        rows += [row for row in dense if _biased(row, biases)] + _norms(config, norm)
    if not config.pre_norm and head in names.POOLED:
        rows += names.XLM_POOLER if roberta else names.POOLER
    if masked and config.head_bias:
        rows.append(names.HEAD_BIAS)
    if head in ("next_sentence", "pretraining"):
        rows += names.NEXT_SENTENCE
    elif head == "question_answering":
        rows += names.SPANS
    elif head in names.CLASSIFIED:
        rows += names.XLM_CLASSIFIER if roberta else names.CLASSIFIER
    return rows


def _norms(config: ModelConfig, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if _biased(row, config.norm_bias)]


def _biased(row: Row, biases: bool) -> bool:
    return biases or not row.ours.endswith(".bias")


def _rule(row: Row, ours: str, options: tuple[Published, ...]) -> Rule:
    return Rule(ours, row.axes, row.published_axes, options)


def _options(row: Row, order: Iterable[Naming]) -> tuple[Published, ...]:
    return tuple(row.names[naming] for naming in order if naming in row.names)


def _in_layer(row: Row, naming: Naming) -> Published:
    option = row.names[naming]
    prefix = encoder_names.LAYERS[naming]
    names = tuple(prefix + name for name in option.names)
    return dataclasses.replace(option, names=names)
