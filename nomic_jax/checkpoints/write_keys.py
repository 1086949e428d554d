"""A `ModelConfig` spelt as config.json, in Nomic's keys or transformers'."""

from typing import Any

from nomic_jax.checkpoints.config_families import ACTIVATIONS
from nomic_jax.checkpoints.families import Family, Style, family_of
from nomic_jax.checkpoints.head_keys import write_head_keys
from nomic_jax.checkpoints.key_tables import KEYS
from nomic_jax.config import ModelConfig


def write_config_keys(config: ModelConfig, style: Style) -> dict[str, Any]:
    """Spell a config as config.json in one of the key styles.

    Reading it back gives an equal `ModelConfig`, where the layout has a place for it.
    """
    family = "nomic_bert" if style == "nomic" else family_of(config)
    values = {"model_type": family, **write_head_keys(config, style)}
    named = _named(config, family, first=style == "nomic")
    if style == "nomic":
        return {**values, **named, **_nomic(config)}
    return {**values, **named, **_NATIVE[family](config)}


def _named(config: ModelConfig, family: Family, *, first: bool) -> dict[str, Any]:
    """Give every field that has a key of its own that key, Nomic's or the last."""
    named: dict[str, Any] = {}
    for field, (keys, _) in KEYS[family].items():
        value, key = getattr(config, field), keys[0 if first else -1]
        if field == "dropout" and family == "modernbert":
            named |= dict.fromkeys(keys, value)
        elif "." not in key:  # the rope's are nested, and spelt below
            named[key] = value
    return named


def _nomic(config: ModelConfig) -> dict[str, Any]:
    rotary = config.rope_base is not None
    rows = config.first_position + config.trained_positions
    values = {
        "n_positions": config.trained_positions if rotary else rows,
        "pad_vocab_size_multiple": 1 if config.vocab_size % 64 else 64,
        "activation_function": config.activation,
        "attn_pdrop": 0.0 if rotary else config.dropout,
        "embd_pdrop": 0.0,
        **dict.fromkeys(("causal", "prenorm", "parallel_block"), False),
        "qkv_proj_bias": config.bias,
        "mlp_fc1_bias": config.bias,
        "mlp_fc2_bias": config.bias,
        "use_rms_norm": False,
        "rotary_emb_fraction": 1.0 if rotary else 0.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "tie_word_embeddings": True,
    }
    if not config.num_experts:
        return values
    return {
        **values,
        "num_experts": config.num_experts,
        "moe_top_k": config.experts_per_token,
        "moe_every_n_layers": 2,
        "moe_normalize_expert_weights": False,
        "moe_resid_pdrop": config.expert_dropout,
        "moe_impl": "megablocks",
        "ffn_div": 1,
        "num_shared_experts": 0,
        "expert_choice_router": False,
    }


def _native_nomic(config: ModelConfig) -> dict[str, Any]:
    rope = {
        "rope_theta": config.rope_base,
        "rope_type": "default" if config.rope_scaling_factor is None else "dynamic",
    }
    if config.rope_scaling_factor is not None:
        rope["factor"] = config.rope_scaling_factor
    return {
        "hidden_act": ACTIVATIONS[config.activation][0],
        "attention_probs_dropout_prob": 0.0,
        "head_dim": config.head_width,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
    }


def _native_bert(config: ModelConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": config.first_position + config.trained_positions,
        "position_embedding_type": "absolute",
        "hidden_act": "gelu",
        # Theirs have one rate everywhere; this encoder drops no attention weights.
        "attention_probs_dropout_prob": config.dropout,
        "tie_word_embeddings": True,
    }


def _native_modern(config: ModelConfig) -> dict[str, Any]:
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


_NATIVE = {
    "nomic_bert": _native_nomic,
    "bert": _native_bert,
    "xlm-roberta": _native_bert,
    "modernbert": _native_modern,
}
