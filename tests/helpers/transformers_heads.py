"""transformers' models with heads at tiny sizes, and their arrays under our names.

`nomic_jax.checkpoints` has a mapping of its own, which tests of the arithmetic must not
lean on.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import layer_places
from nomic_jax.model.heads import make_model

BERT = ModelConfig(
    vocab_size=128,
    type_vocab_size=2,
    num_layers=2,
    width=32,
    num_heads=4,
    mlp_width=64,
    layer_norm_epsilon=1e-12,
    rope_base=None,
    trained_positions=32,
    activation="gelu",
    bias=True,
)
XLM_R = dataclasses.replace(
    BERT,
    type_vocab_size=1,
    pad_token_id=1,
    first_position=2,
    layer_norm_epsilon=1e-5,
)
NOMIC = dataclasses.replace(BERT, rope_base=1000.0, activation="swiglu", bias=False)
MODERN = ModelConfig(
    vocab_size=128,
    type_vocab_size=0,
    num_layers=3,
    width=32,
    num_heads=4,
    mlp_width=48,
    layer_norm_epsilon=1e-5,
    rope_base=160000.0,
    trained_positions=32,
    activation="geglu",
    pre_norm=True,
    norm_bias=False,
    global_every=2,
    local_window=3,
    local_rope_base=10000.0,
)

# Beginnings of names; {} is a layer's number. Of several, each is a part, in order.
_BERT_LAYER = {
    "attention.qkv": tuple(f"attention.self.{x}" for x in ("query", "key", "value")),
    "attention.out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "mlp.up": ("intermediate.dense",),
    "mlp.down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
_BERT_TABLES = {
    "word_embedding": "embeddings.word_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
_NOMIC_LAYER = {
    "attention.qkv": tuple(f"self_attn.{x}_proj" for x in "qkv"),
    "attention.out": ("self_attn.o_proj",),
    "attention_norm": ("post_attention_layernorm",),
    "mlp.up": ("mlp.up_proj",),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.down": ("mlp.down_proj",),
    "mlp_norm": ("post_mlp_layernorm",),
}
_MODERN_LAYER = {
    "attention.qkv": ("attn.Wqkv",),
    "attention.out": ("attn.Wo",),
    "attention_norm": ("attn_norm",),
    "mlp.gate": ("mlp.gate",),  # the halves of Wi, split beforehand
    "mlp.up": ("mlp.up",),
    "mlp.down": ("mlp.Wo",),
    "mlp_norm": ("mlp_norm",),
}
_MODERN_TABLES = {
    "word_embedding": "embeddings.tok_embeddings",
    "embedding_norm": "embeddings.norm",
    "final_norm": "final_norm",
}
_PREDICTIONS = "cls.predictions"
_BERT_HEADS = {
    f"{_PREDICTIONS}.transform.dense": "head.dense",
    f"{_PREDICTIONS}.transform.LayerNorm": "head.norm",
    f"{_PREDICTIONS}.transform.layer_norm": "head.norm",
    _PREDICTIONS: "head",
    "cls.seq_relationship": "next_sentence",
    "classifier": "classifier",
    "qa_outputs": "classifier",
}
_XLM_R_HEADS = {
    "lm_head.dense": "head.dense",
    "lm_head.layer_norm": "head.norm",
    "lm_head": "head",
    "classifier.dense": "pooler",
    "classifier.out_proj": "classifier",
    "classifier": "classifier",
    "qa_outputs": "classifier",
}
_MODERN_HEADS = {
    "head.dense": "head.dense",
    "head.norm": "head.norm",
    "decoder": "head",
    "classifier": "classifier",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of one of transformers' model types."""

    name: str  # of its config
    prefix: str  # of the encoder in a model with a head
    layer: str
    tables: dict[str, str]
    layers: dict[str, tuple[str, ...]]
    heads: dict[str, str]


def family(config):
    if config.pre_norm:
        names = (_MODERN_TABLES, _MODERN_LAYER, _MODERN_HEADS)
        return Family("ModernBertConfig", "model.", "layers.{}.", *names)
    if config.rope_base is not None:
        names = (_BERT_TABLES, _NOMIC_LAYER, _BERT_HEADS)
        return Family("NomicBertConfig", "nomic_bert.", "layers.{}.", *names)
    heads = _XLM_R_HEADS if config.first_position else _BERT_HEADS
    names = (_BERT_TABLES, _BERT_LAYER, heads)
    if config.first_position:
        return Family("XLMRobertaConfig", "roberta.", "encoder.layer.{}.", *names)
    return Family("BertConfig", "bert.", "encoder.layer.{}.", *names)


def transformers_config(config):
    import transformers

    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.trained_positions + config.first_position,
        "pad_token_id": config.pad_token_id,
        "num_labels": len(config.labels) or 2,
    }
    if config.problem is not None:
        values["problem_type"] = {
            "regression": "regression",
            "one_label": "single_label_classification",
            "many_labels": "multi_label_classification",
        }[config.problem]
    if config.pre_norm:
        values |= {
            "norm_eps": config.layer_norm_epsilon,
            "global_attn_every_n_layers": config.global_every,
            "local_attention": 2 * config.local_window,
            "global_rope_theta": config.rope_base,
            "local_rope_theta": config.local_rope_base,
            "classifier_pooling": config.head_pooling,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        }
    else:
        values |= {
            "layer_norm_eps": config.layer_norm_epsilon,
            "type_vocab_size": config.type_vocab_size,
            "hidden_act": "silu" if config.activation == "swiglu" else "gelu",
        }
    if config.rope_base is not None and not config.pre_norm:
        theta = {"rope_theta": config.rope_base, "rope_type": "default"}
        values["rope_parameters"] = theta
    return getattr(transformers, family(config).name)(**values)


def transformers_model(config, kind):
    """Draw a model of a class, such as `BertForMaskedLM`."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers_config(config)).eval()
    with torch.no_grad():  # fresh norms and biases would hide what is swapped
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def under_our_names(named, config):
    """Put transformers' arrays, parameters or gradients, under our names.

    Raises:
        AssertionError: one is left over.
    """
    names = family(config)
    left = {name.removeprefix(names.prefix): array for name, array in named.items()}
    if "lm_head.decoder.weight" in left:  # the word table's other name
        left[f"{_BERT_TABLES['word_embedding']}.weight"] = left.pop(
            "lm_head.decoder.weight"
        )
    for name in [name for name in left if name.endswith("mlp.Wi.weight")]:
        gate, up = np.split(left.pop(name), 2)
        left[name.replace("Wi", "gate")], left[name.replace("Wi", "up")] = gate, up
    found = {}
    for ours, theirs in (names.tables | {"pooler": "pooler.dense"}).items():
        path = f"encoder.{ours}" if ours != "pooler" else ours
        found |= _take(left, path, (theirs,), config)
    for place in layer_places(config):
        layers = []
        for number in place.layers:
            layer = {}
            for ours, theirs in names.layers.items():
                begin = names.layer.format(number)
                layer |= _take(left, ours, [begin + name for name in theirs], config)
            layers.append(layer)
        for name in layers[0]:
            each = [layer[name] for layer in layers]
            path = f"encoder.{place.path}.{name}"
            found[path] = np.stack(each) if place.stacked else each[0]
    for theirs, ours in names.heads.items():
        found |= _take(left, ours, (theirs,), config)
    assert not left, sorted(left)
    return found


def _take(left, path, theirs, config):
    found = {}
    for ending in ("weight", "bias"):
        names = [f"{name}.{ending}" for name in theirs]
        if not all(name in left for name in names):
            continue
        array = np.concatenate([left.pop(name) for name in names])
        kind = path.rpartition(".")[2]
        if kind.endswith("embedding"):
            ours = "embedding"
        elif ending == "bias":
            ours = "bias"
        else:
            ours = "scale" if kind.endswith("norm") else "kernel"
        array = array.T if ours == "kernel" else array
        heads = (config.num_heads, config.head_width)
        if kind == "qkv":
            array = array.reshape(*array.shape[:-1], 3, *heads)
        if kind == "out" and ours == "kernel":
            array = array.reshape(*heads, -1)
        found[f"{path}.{ours}"] = array
    return found


def drawn(config):
    """Our model with weights that NumPy drew, which takes no compiling."""
    shapes = jax.eval_shape(lambda: make_model(config, rngs=nnx.Rngs(0)))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    random = np.random.default_rng(2)
    leaves = [
        (0.2 * random.normal(size=leaf.shape)).astype(np.float32)
        + path_name(path).endswith("scale")
        for path, leaf in paths
    ]
    return jax.tree.unflatten(structure, map(jnp.asarray, leaves))


def path_name(path):
    """Name a leaf of our model by its path."""
    parts = [str(getattr(key, "name", getattr(key, "key", key))) for key in path]
    parts = [re.sub(r"\W", "", part) for part in parts]
    return ".".join(part for part in parts if part != "value")
