"""Which published tensors each parameter of a config is made of, and how.

A published linear weight is `[out, in]`; ours is `[in, out]`, with the heads of
attention as axes of their own. Ours are stacked over the layers that are scanned
together. Names in a file may have a prefix, a second name or an old spelling.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nomic_jax.checkpoints.families import tensor_names
from nomic_jax.checkpoints.families.spec import (
    Family,
    Naming,
    Published,
    Row,
    family_of,
)
from nomic_jax.checkpoints.families.tensor_names import TIED
from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import layer_places

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
    names = tensor_names
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
    names, head = tensor_names, config.head
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
    prefix = tensor_names.LAYERS[naming]
    names = tuple(prefix + name for name in option.names)
    return dataclasses.replace(option, names=names)


# What may stand before the names of an encoder: nothing, or the name it has in the
# class that saved it.
PREFIXES = ("", "bert.", "roberta.", "nomic_bert.", "model.", "trunk.")
# Computed, not learned.
_BUFFER = re.compile(r"(.*\.)?(position_ids|token_type_ids|rotary_emb\.\w+)")
# Of the first BERTs, which came from TensorFlow.
_OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclasses.dataclass(frozen=True)
class TensorTarget:
    """Where a tensor belongs: a parameter's layer, as one of the tensors it has."""

    rule: Rule
    index: int  # of the layer, in the parameter
    option: Published
    source: str  # tensors of one source together are the parameter
    part: int  # of the tensors that are joined


def places(rules: Sequence[Rule], config: ModelConfig) -> dict[str, list[TensorTarget]]:
    """Name every tensor that a file of this config may hold.

    A tensor has several places where several parameters are shares of its rows.
    """
    found: defaultdict[str, list[TensorTarget]] = defaultdict(list)
    for rule in rules:
        for option in (*rule.options, *_second_names(rule, config)):
            for prefix in PREFIXES if option.inside else ("",):
                source = f"{prefix}{option}"
                for index, layer in enumerate(rule.layers or (0,)):
                    for part, name in enumerate(option.names):
                        place = TensorTarget(rule, index, option, source, part)
                        for spelt in _spellings(prefix + name.format(layer)):
                            if not any(p.rule is rule for p in found[spelt]):
                                found[spelt].append(place)
    return found


def tied_decoders(config: ModelConfig) -> tuple[str, ...]:
    """Return the second names that the word table may have as a decoder."""
    return tuple(f"{TIED[naming]}.weight" for naming in NAMINGS[family_of(config)])


def is_buffer(name: str) -> bool:
    """Whether a tensor holds what the model computes for itself."""
    return _BUFFER.fullmatch(name) is not None


def is_left_over(name: str, config: ModelConfig) -> bool:
    """Whether a tensor is of a pooler that the head of this config never reads.

    Files of BERT and XLM-R have one next to heads on tokens, from the model that they
    were trained from; transformers' classes for these heads have none either.
    """
    unread = config.head in ("mlm", "token_classification", "question_answering")
    published = family_of(config) in ("bert", "xlm-roberta")
    return (
        unread
        and published
        and re.fullmatch(r"(\w+\.)?pooler\.dense\.(weight|bias)", name) is not None
    )


def _second_names(rule: Rule, config: ModelConfig) -> tuple[Published, ...]:
    if rule.ours != "head.bias":
        return ()
    names = dict.fromkeys(f"{TIED[n]}.bias" for n in NAMINGS[family_of(config)])
    return tuple(Published((name,), inside=False) for name in names)


def _spellings(name: str) -> Mapping[str, None]:
    spellings = {name: None}
    for new, old in _OLD.items():
        if name.endswith(new):
            spellings[name.removesuffix(new) + old] = None
    return spellings
