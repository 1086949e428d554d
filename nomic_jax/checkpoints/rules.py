"""The rule table of NomicBERT: our parameters and the published tensors, row by row.

A published linear weight is `[out, in]`, ours `[in, out]` with the heads of attention
as axes of their own; everything else is the same array on both sides. Ours are stacked
over layers, `{}` in a published name. `fc11` is `up` and `fc12` the SiLU's `gate`.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from nomic_jax.config import ModelConfig

PREFIXES = ("", "bert.", "trunk.", "nomic_bert.")  # of published encoder tensors
HEAD_BIAS = "cls.predictions.bias"
DECODER_BIAS = "cls.predictions.decoder.bias"  # the head's bias under a second name
TIED_DECODER = "cls.predictions.decoder.weight"  # the word table under a second name
_WORD_TABLE = "embeddings.word_embeddings.weight"
_TYPE_TABLE = "embeddings.token_type_embeddings.weight"
_TRANSFORM = "cls.predictions.transform"
_BUFFER = re.compile(r"(.*\.)?(position_ids|rotary_emb\.\w+)")  # computed, not learned
_LAYER = re.compile(r"(?P<head>(?:.*\.)?layers\.)(?P<layer>0|[1-9]\d*)(?P<tail>\..+)")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of parameter. Shapes are spelt in letters, of one layer."""

    ours: str
    our_shape: str
    published: str
    published_shape: str

    @property
    def stacked(self) -> bool:
        """Whether every layer has one."""
        return "{}" in self.published

    @property
    def linear(self) -> bool:
        """Whether the two sides are transposed."""
        return self.ours.endswith(".kernel")

    def shapes(self, config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of one layer: ours, and the published."""
        sizes = {
            "V": config.vocab_size,
            "T": config.type_vocab_size,
            "D": config.width,
            "3D": 3 * config.width,
            "F": config.mlp_width,
            "H": config.num_heads,
            "K": config.head_width,
            "3": 3,
        }
        ours, published = (
            tuple(sizes[letter] for letter in shape.split())
            for shape in (self.our_shape, self.published_shape)
        )
        return ours, published

    def stacked_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Return the shape of our parameter, all layers in one array."""
        shape = self.shapes(config)[0]
        return (config.num_layers, *shape) if self.stacked else shape

    def to_ours(self, array: np.ndarray, config: ModelConfig) -> np.ndarray:
        """Turn one published tensor into ours of one layer."""
        return array.T.reshape(self.shapes(config)[0]) if self.linear else array

    def to_published(self, array: np.ndarray, config: ModelConfig) -> np.ndarray:
        """Turn ours of one layer into the published tensor."""
        shape = self.shapes(config)[1]
        return array.reshape(shape[::-1]).T if self.linear else array


def _layer(ours: str, our_shape: str, published: str, published_shape: str) -> Rule:
    ours, published = f"encoder.blocks.{ours}", f"encoder.layers.{{}}.{published}"
    return Rule(ours, our_shape, published, published_shape)


ENCODER_RULES = (
    # ours, its shape in one layer; the published name, its shape
    Rule("encoder.word_embedding.embedding", "V D", _WORD_TABLE, "V D"),
    Rule("encoder.type_embedding.embedding", "T D", _TYPE_TABLE, "T D"),
    Rule("encoder.embedding_norm.scale", "D", "emb_ln.weight", "D"),
    Rule("encoder.embedding_norm.bias", "D", "emb_ln.bias", "D"),
    _layer("attention.qkv.kernel", "D 3 H K", "attn.Wqkv.weight", "3D D"),
    _layer("attention.out.kernel", "H K D", "attn.out_proj.weight", "D D"),
    _layer("attention_norm.scale", "D", "norm1.weight", "D"),
    _layer("attention_norm.bias", "D", "norm1.bias", "D"),
    _layer("mlp.up.kernel", "D F", "mlp.fc11.weight", "F D"),
    _layer("mlp.gate.kernel", "D F", "mlp.fc12.weight", "F D"),
    _layer("mlp.down.kernel", "F D", "mlp.fc2.weight", "D F"),
    _layer("mlp_norm.scale", "D", "norm2.weight", "D"),
    _layer("mlp_norm.bias", "D", "norm2.bias", "D"),
)
HEAD_RULES = (
    Rule("head.dense.kernel", "D D", f"{_TRANSFORM}.dense.weight", "D D"),
    Rule("head.norm.scale", "D", f"{_TRANSFORM}.layer_norm.weight", "D"),
    Rule("head.norm.bias", "D", f"{_TRANSFORM}.layer_norm.bias", "D"),
)
HEAD_BIAS_RULES = (  # only transformers' head has them
    Rule("head.dense.bias", "D", f"{_TRANSFORM}.dense.bias", "D"),
    Rule("head.bias", "V", HEAD_BIAS, "V"),
)

# What transformers calls the same tensors in memory, under `layers.{}.`; of several
# names each is a part, stacked along axis 0 in this order.
NATIVE_NAMES: Mapping[str, tuple[str, ...]] = {
    "attn.Wqkv.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "attn.out_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.fc11.weight": ("mlp.up_proj.weight",),
    "mlp.fc12.weight": ("mlp.gate_proj.weight",),
    "mlp.fc2.weight": ("mlp.down_proj.weight",),
    "norm1.weight": ("post_attention_layernorm.weight",),
    "norm1.bias": ("post_attention_layernorm.bias",),
    "norm2.weight": ("post_mlp_layernorm.weight",),
    "norm2.bias": ("post_mlp_layernorm.bias",),
}


def rules_for(config: ModelConfig) -> tuple[Rule, ...]:
    """Return the rows that a model of this config has.

    Raises:
        ValueError: it is no NomicBERT, whose parameters alone have names here.
    """
    if config.activation != "swiglu" or config.bias or config.rope_base is None:
        raise ValueError(
            f"activation={config.activation!r}, bias={config.bias}, rope_base="
            f"{config.rope_base}: checkpoints hold NomicBERT, with swiglu, no biases "
            "and rotary positions"
        )
    head = HEAD_RULES if config.head == "mlm" else ()
    return ENCODER_RULES + head + (HEAD_BIAS_RULES if config.head_bias else ())


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a published tensor belongs: a rule, a layer, and a part of the tensor."""

    rule: Rule
    layer: int  # 0 for what is not stacked
    part: int | None  # of the tensors that are joined into one; None: the whole


def native_names(rule: Rule) -> tuple[str, ...]:
    """Return what transformers calls a tensor, or the parts that it is split into."""
    if rule.published.startswith("emb_ln."):
        return (rule.published.replace("emb_ln", "embeddings.LayerNorm"),)
    names = NATIVE_NAMES.get(rule.published.removeprefix("encoder.layers.{}."), ())
    return tuple(f"layers.{{}}.{name}" for name in names)


def _names() -> Mapping[str, tuple[Rule, int | None]]:
    table: dict[str, tuple[Rule, int | None]] = {}
    for rule in ENCODER_RULES:
        table[rule.published] = (rule, None)
        native = native_names(rule)
        for part, name in enumerate(native):
            table[name] = (rule, part if len(native) > 1 else None)
    return table


_ENCODER_NAMES = _names()
_HEAD_NAMES = {rule.published: rule for rule in HEAD_RULES + HEAD_BIAS_RULES}
_HEAD_NAMES[DECODER_BIAS] = _HEAD_NAMES[HEAD_BIAS]


def locate(name: str) -> Place | None:
    """Find the place of a tensor by its name in a published or transformers file."""
    if name in _HEAD_NAMES:
        return Place(_HEAD_NAMES[name], 0, None)
    for prefix in PREFIXES:
        template, layer = name.removeprefix(prefix), 0
        if not name.startswith(prefix):
            continue
        if found := _LAYER.fullmatch(template):
            template = f"{found['head']}{{}}{found['tail']}"
            layer = int(found["layer"])
        if template in _ENCODER_NAMES:
            rule, part = _ENCODER_NAMES[template]
            return Place(rule, layer, part)
    return None


def is_buffer(name: str) -> bool:
    """Whether a tensor holds what the model computes for itself."""
    return _BUFFER.fullmatch(name) is not None
