"""From the names in a published file to the parameters that the tensors belong to."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from nomic_jax.checkpoints.families import family_of
from nomic_jax.checkpoints.head_names import TIED
from nomic_jax.checkpoints.row import Published
from nomic_jax.checkpoints.rules import NAMINGS, Rule
from nomic_jax.config import ModelConfig

# What may stand before the names of an encoder: nothing, or the name it has in the
# class that saved it.
PREFIXES = ("", "bert.", "roberta.", "nomic_bert.", "model.", "trunk.")
# Computed, not learned.
_BUFFER = re.compile(r"(.*\.)?(position_ids|token_type_ids|rotary_emb\.\w+)")
# Of the first BERTs, which came from TensorFlow.
_OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor belongs: a parameter's layer, as one of the tensors it has."""

    rule: Rule
    index: int  # of the layer, in the parameter
    option: Published
    source: str  # tensors of one source together are the parameter
    part: int  # of the tensors that are joined


def places(rules: Sequence[Rule], config: ModelConfig) -> dict[str, list[Place]]:
    """Name every tensor that a file of this config may hold.

    A tensor has several places where several parameters are shares of its rows.
    """
    found: defaultdict[str, list[Place]] = defaultdict(list)
    for rule in rules:
        for option in (*rule.options, *_second_names(rule, config)):
            for prefix in PREFIXES if option.inside else ("",):
                source = f"{prefix}{option}"
                for index, layer in enumerate(rule.layers or (0,)):
                    for part, name in enumerate(option.names):
                        place = Place(rule, index, option, source, part)
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

    Files of BERT and XLM-R have one beside heads on tokens, from the model that they
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
