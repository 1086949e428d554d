"""Tiny published folders, written with NumPy and the safetensors library alone."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from nomic_jax.checkpoints.names import rules_for
from nomic_jax.config import ModelConfig

LAYERS, WIDTH, HEADS, MLP, VOCABULARY = 2, 32, 4, 64, 128
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}

# What every folder below holds.
CONFIG = ModelConfig(
    vocab_size=VOCABULARY,
    type_vocab_size=2,
    num_layers=LAYERS,
    width=WIDTH,
    num_heads=HEADS,
    mlp_width=MLP,
    layer_norm_epsilon=1e-12,
    rope_base=1000.0,
    trained_positions=64,
)

NOMIC_CONFIG = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "causal": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 64,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_inner": MLP,
    "n_layer": LAYERS,
    "n_positions": 256,
    "pad_vocab_size_multiple": 64,
    "prenorm": False,
    "qkv_proj_bias": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": VOCABULARY,
}
NATIVE_CONFIG = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "attention_probs_dropout_prob": 0.0,
    "dtype": "float32",
    "head_dim": WIDTH // HEADS,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": MLP,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    "transformers_version": "5.23.0",
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
}


def tensors(*, prefix="", head=False, head_bias=False, dtype=np.float32, seed=0):
    """Random tensors under the published names."""
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "emb_ln.weight": (WIDTH,),
        "emb_ln.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        at = f"encoder.layers.{layer}"
        shapes |= {
            f"{at}.attn.Wqkv.weight": (3 * WIDTH, WIDTH),
            f"{at}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{at}.mlp.fc11.weight": (MLP, WIDTH),
            f"{at}.mlp.fc12.weight": (MLP, WIDTH),
            f"{at}.mlp.fc2.weight": (WIDTH, MLP),
            **{f"{at}.norm{i}.{w}": (WIDTH,) for i in "12" for w in ("weight", "bias")},
        }
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    predictions = "cls.predictions"
    if head:
        shapes |= {
            f"{predictions}.transform.dense.weight": (WIDTH, WIDTH),
            f"{predictions}.transform.layer_norm.weight": (WIDTH,),
            f"{predictions}.transform.layer_norm.bias": (WIDTH,),
        }
    if head_bias:
        shapes |= {
            f"{predictions}.transform.dense.bias": (WIDTH,),
            f"{predictions}.bias": (VOCABULARY,),
        }
    random = np.random.default_rng(seed)
    return {
        name: (0.1 * random.standard_normal(shape, np.float32)).astype(dtype)
        for name, shape in shapes.items()
    }


NATIVE_NAMES = {
    "emb_ln": "embeddings.LayerNorm",
    "encoder.layers": "layers",
    "attn.out_proj": "self_attn.o_proj",
    "fc11": "up_proj",
    "fc12": "gate_proj",
    "fc2": "down_proj",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}


def natively_named(published):
    """The same tensors under the names transformers has in memory, QKV split."""
    renamed = {}
    for name, array in published.items():
        for old, new in NATIVE_NAMES.items():
            name = name.replace(old, new)
        if "attn.Wqkv" not in name:
            renamed[name] = array
            continue
        for part, piece in zip("qkv", np.split(array, 3), strict=True):
            renamed[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = piece
    return renamed


def folder(path, arrays, config):
    """Write a model folder."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        path / "model.safetensors",
    )
    return path


def load(path):
    """Every tensor of a folder."""
    return load_file(path / "model.safetensors")


def add_tokenizer(path):
    """A WordPiece tokenizer whose ids fit the tiny vocabulary."""
    from nomic_jax.data.tokenizer import TextTokenizer

    words = "a small fox jumps over the lazy dog while search query document : _"
    TextTokenizer.train([words] * 3, vocab_size=VOCABULARY).save(path)
    return path


def assert_bitwise(got, expected):
    """The same names, dtypes, shapes and bytes."""
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


# One small model of each family; the sizes are those above.
_SIZES = {
    "vocab_size": VOCABULARY,
    "type_vocab_size": 2,
    "num_layers": LAYERS,
    "width": WIDTH,
    "num_heads": HEADS,
    "mlp_width": MLP,
    "layer_norm_epsilon": 1e-12,
    "trained_positions": 64,
}
_BIASED = {"activation": "gelu", "bias": True}
FAMILIES = {
    "nomic": CONFIG,
    "nomic-xlm": ModelConfig(**_SIZES, **_BIASED, rope_base=10000.0),
    "moe": ModelConfig(**_SIZES, **_BIASED, rope_base=10000.0, num_experts=4),
    "bert": ModelConfig(**_SIZES, **_BIASED, rope_base=None),
    "xlm-roberta": ModelConfig(
        **_SIZES, **_BIASED, rope_base=None, first_position=2, pad_token_id=1
    ),
    "modernbert": ModelConfig(
        **_SIZES | {"num_layers": 6, "type_vocab_size": 0, "layer_norm_epsilon": 1e-5},
        rope_base=160000.0,
        activation="geglu",
        pre_norm=True,
        norm_bias=False,
        global_every=3,
        local_window=8,
        local_rope_base=10000.0,
    ),
}
LABELS = ("no", "maybe", "yes")
HEADS_OF = {
    None: {},
    "pooler": {},
    "mlm": {"head_bias": True},
    "pretraining": {"head_bias": True},
    "next_sentence": {},
    "sequence_classification": {
        **{"labels": LABELS, "problem": "many_labels", "head_dropout": 0.25}
    },
    "token_classification": {"labels": LABELS, "head_dropout": 0.25},
    "question_answering": {},
    "multiple_choice": {"head_dropout": 0.25},
}


def configured(family, head):
    """The small model of a family with a head on it; None where there is none such."""
    import dataclasses

    values = dict(HEADS_OF[head])
    if family == "modernbert" and head in (
        "sequence_classification",
        "multiple_choice",
    ):
        values["head_pooling"] = "mean"
    try:
        return dataclasses.replace(FAMILIES[family], head=head, **values)
    except ValueError:
        return None


def nomic_shapes(config):
    """The names and shapes of Nomic's layout, for any config it has a place for."""
    width, inner = config.width, config.mlp_width
    shapes = {}

    def add(name, outputs, *inputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, *inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    prefix = "" if config.head in (None, "pooler") else "bert."
    tables = {"word": config.vocab_size, "token_type": config.type_vocab_size}
    if config.rope_base is None:
        tables["position"] = config.first_position + config.trained_positions
    for name, rows in tables.items():
        add(f"{prefix}embeddings.{name}_embeddings", rows, width, bias=False)
    add(f"{prefix}emb_ln", width)
    for layer in range(config.num_layers):
        at = f"{prefix}encoder.layers.{layer}"
        add(f"{at}.attn.Wqkv", 3 * width, width, bias=config.bias)
        add(f"{at}.attn.out_proj", width, width, bias=config.bias)
        add(f"{at}.norm1", width)
        add(f"{at}.norm2", width)
        if config.num_experts and layer % 2:
            add(f"{at}.mlp.router.layer", config.num_experts, width, bias=False)
            rows = config.num_experts * inner
            shapes[f"{at}.mlp.experts.mlp.w1"] = (rows, width)
            shapes[f"{at}.mlp.experts.mlp.w2"] = (rows, width)
            shapes[f"{at}.mlp.experts.bias"] = (width,)
            continue
        for name in ("fc11", "fc12") if config.activation == "swiglu" else ("fc1",):
            add(f"{at}.mlp.{name}", inner, width, bias=config.bias)
        add(f"{at}.mlp.fc2", width, inner, bias=config.bias)
    head = config.head
    if head in ("mlm", "pretraining"):
        predictions = "cls.predictions"
        add(f"{predictions}.transform.dense", width, width, bias=config.head_bias)
        add(f"{predictions}.transform.layer_norm", width)
        add(f"{predictions}.decoder", config.vocab_size, width, bias=config.head_bias)
    if head in (
        *("pooler", "pretraining", "next_sentence"),
        *("sequence_classification", "multiple_choice"),
    ):
        add(f"{prefix}pooler.dense", width, width)
    if head in ("pretraining", "next_sentence"):
        add("cls.seq_relationship", 2, width)
    if head == "question_answering":
        add("qa_outputs", 2, width)
    if head in ("sequence_classification", "token_classification"):
        add("classifier", len(config.labels), width)
    if head == "multiple_choice":
        add("classifier", 1, width)
    return shapes


def nomic_tensors(config, *, dtype=np.float32, seed=0):
    """Random tensors of Nomic's layout, the decoder tied."""
    random = np.random.default_rng(seed)
    arrays = {
        name: (0.1 * random.standard_normal(shape, np.float32)).astype(dtype)
        for name, shape in nomic_shapes(config).items()
    }
    if "cls.predictions.decoder.weight" in arrays:
        table = arrays["bert.embeddings.word_embeddings.weight"]
        arrays["cls.predictions.decoder.weight"] = table
    return arrays


def ours(path, config):
    """A folder of ours with random parameters."""
    random = np.random.default_rng(0)
    arrays = {
        rule.ours: random.standard_normal(rule.stacked_shape(config), np.float32)
        for rule in rules_for(config)
    }
    values = {"format": "nomic_jax", "format_version": 1, "model": config.to_json()}
    return folder(path, arrays, values)
