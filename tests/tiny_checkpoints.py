"""Tiny published folders, written with NumPy and the safetensors library alone."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

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
    from nomic_jax.tokenizer import TextTokenizer

    words = "a small fox jumps over the lazy dog while search query document : _"
    TextTokenizer.train([words] * 3, vocab_size=VOCABULARY).save(path)
    return path


def assert_bitwise(got, expected):
    """The same names, dtypes, shapes and bytes."""
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name
