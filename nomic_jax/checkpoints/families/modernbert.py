"""ModernBERT: pre-norm, GeGLU, local attention in most layers (arXiv:2412.13663)."""

from typing import Any

from nomic_jax.checkpoints.families.spec import FIXED, FamilySpec, Keys, Values, typed
from nomic_jax.checkpoints.problems import Problem
from nomic_jax.config import ModelConfig


def _derive(values: Values, problems: list[Problem]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        **{"activation": "geglu", "bias": False, "pre_norm": True},
        **{"norm_bias": False, "type_vocab_size": 0},
    }
    key = "global_attn_every_n_layers"
    every, kinds = values.get(key), values.get("layer_types")
    layers = values.get("num_hidden_layers")
    if every is None and isinstance(kinds, list):
        others = [i for i, kind in enumerate(kinds) if i and kind == "full_attention"]
        # Without a second global layer, any distance beyond the end is the same model.
        every = others[0] if others else max(3, len(kinds))
        every = every if "sliding_attention" in kinds else 1
    every = typed("global_every", key, 3 if every is None else every, problems)
    if isinstance(kinds, list) and isinstance(layers, int) and every:
        pattern = [
            f"{'sliding' if i % every else 'full'}_attention" for i in range(layers)
        ]
        if kinds != pattern:
            note = f"({key}={every}: full attention in layers 0, {every}... only)"
            problems.append(Problem("config", f"layer_types={kinds!r}", note))
    fields["global_every"] = every or 1
    if fields["global_every"] == 1:
        return {**fields, "local_window": None, "local_rope_base": None}
    window = values.get("local_attention", 128)  # both ways together
    window = typed("local_window", "local_attention", window, problems)
    if window is not None and (window < 2 or window % 2):
        note = "(half of it is on either side: an even number from 2 on is needed)"
        problems.append(Problem("config", f"local_attention={window!r}", note))
        window = 2
    fields["local_window"] = ... if window is None else window // 2
    return fields


def _write(config: ModelConfig) -> dict[str, Any]:
    every = config.global_every
    theta = {"full_attention": config.rope_base}
    kinds = ["full_attention"] * config.num_layers
    extra: dict[str, Any] = {}
    if config.local_window is not None:
        theta["sliding_attention"] = config.local_rope_base
        kinds = [
            f"{'sliding' if i % every else 'full'}_attention"
            for i in range(config.num_layers)
        ]
        extra["local_attention"] = 2 * config.local_window
    return {
        **extra,
        "global_attn_every_n_layers": every,
        "layer_types": kinds,
        "rope_parameters": {
            kind: {"rope_theta": base, "rope_type": "default"}
            for kind, base in theta.items()
        },
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "decoder_bias": config.head_bias,
        "tie_word_embeddings": True,
    }


_KEYS: Keys = {
    "vocab_size": (("vocab_size",), ...),
    "num_layers": (("num_hidden_layers",), ...),
    "width": (("hidden_size",), ...),
    "num_heads": (("num_attention_heads",), ...),
    "mlp_width": (("intermediate_size",), ...),
    "layer_norm_epsilon": (("norm_eps",), 1e-5),
    "rope_base": (
        ("global_rope_theta", "rope_parameters.full_attention.rope_theta"),
        160000.0,
    ),
    "local_rope_base": (
        ("local_rope_theta", "rope_parameters.sliding_attention.rope_theta"),
        10000.0,
    ),
    "trained_positions": (("max_position_embeddings",), 8192),
    "pad_token_id": (("pad_token_id",), 50283),
    # One rate at three places here, as in a model that trains without.
    "dropout": (("embedding_dropout", "mlp_dropout", "attention_dropout"), 0.0),
    "initializer_range": (("initializer_range",), 0.02),
}
MODERNBERT = FamilySpec(
    keys=_KEYS,
    fixed={
        **FIXED,
        "hidden_activation": ("gelu",),
        "classifier_activation": ("gelu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "norm_bias": (False, None),
        "classifier_bias": (False, None),
        "rope_parameters.full_attention.rope_type": ("default", None),
        "rope_parameters.sliding_attention.rope_type": ("default", None),
    },
    derive=_derive,
    derived=frozenset(
        "layer_types global_attn_every_n_layers local_attention decoder_bias "
        "classifier_pooling".split()
    ),
    write=_write,
    ignored=frozenset({"layer_norm_eps"}),
)
