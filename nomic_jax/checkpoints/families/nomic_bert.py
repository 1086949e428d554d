"""NomicBERT: rotary embeddings, SwiGLU, and its mixture of experts (arXiv:2402.01613).

Nomic's own files have GPT-2's names of the keys, transformers' have BERT's; Nomic's
layout of BERT and XLM-R, with absolute positions, is read here too.
"""

from typing import Any

from nomic_jax.checkpoints.families.bert import absolute
from nomic_jax.checkpoints.families.spec import (
    ACTIVATIONS,
    FIXED,
    Family,
    FamilySpec,
    Fixed,
    Keys,
    Values,
    native_style,
    typed,
)
from nomic_jax.checkpoints.problems import Problem
from nomic_jax.config import ModelConfig

_BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")


def _derive(values: Values, problems: list[Problem]) -> dict[str, Any]:
    native = native_style(values)
    fields = {
        "activation": _activation(values, native, problems),
        "bias": _bias(values, native, problems),
    }
    fraction = values.get("rotary_emb_fraction", 1.0 if native else 0.0)
    if fraction == 0:
        pad = values.get("pad_token_id") or 0
        family: Family = "xlm-roberta" if pad else "bert"
        rows = values.get("n_positions", values.get("max_position_embeddings"))
        if not isinstance(rows, int):
            name = "n_positions is missing"
            problems.append(Problem("config", name, "(rows of absolute positions)"))
            rows = ...
        fields |= absolute(values, family, rows) | {"rope_scaling_factor": None}
    elif fraction != 1:
        note = "(only 1.0, rotary, or 0.0, absolute positions, is implemented)"
        problems.append(Problem("config", f"rotary_emb_fraction={fraction!r}", note))
    if experts := values.get("num_experts"):
        fields["num_experts"] = typed("num_experts", "num_experts", experts, problems)
        for field, key, absent in (
            ("experts_per_token", "moe_top_k", 1),
            ("expert_dropout", "moe_resid_pdrop", 0.0),
        ):
            value = values.get(key)
            value = absent if value is None else value
            fields[field] = typed(field, key, value, problems)
    return fields


def _activation(values: Values, native: bool, problems: list[Problem]) -> Any:
    given, theirs = values.get("activation_function"), values.get("hidden_act")
    if given is None and not native:
        problems.append(Problem("config", "activation_function is missing"))
        return ...
    if given is None:
        theirs = "silu" if theirs is None else theirs
        for name in ("swiglu", "geglu"):
            if theirs in ACTIVATIONS[name]:
                return name
        note = "(only 'silu' or 'gelu', which gate here, is implemented)"
        problems.append(Problem("config", f"hidden_act={theirs!r}", note))
        return ...
    if given not in ACTIVATIONS:
        note = f"(only {' or '.join(map(repr, ACTIVATIONS))}, exact, is implemented)"
        problems.append(Problem("config", f"activation_function={given!r}", note))
        return ...
    if theirs is not None and theirs not in ACTIVATIONS[given]:
        said = f"activation_function is {given} but hidden_act is {theirs}"
        problems.append(Problem("config", said, "(the two key styles disagree)"))
    return given


def _bias(values: Values, native: bool, problems: list[Problem]) -> bool:
    # What is absent is True in Nomic's class, and False in transformers'.
    given = {key: bool(values.get(key, not native)) for key in _BIASES}
    if len(set(given.values())) > 1:
        said = ", ".join(f"{key}={value}" for key, value in given.items())
        problems.append(Problem("config", said, "(only one choice for all three is)"))
    return any(given.values())


def write_nomic(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of Nomic's own files that are not one field each."""
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


def _write(config: ModelConfig) -> dict[str, Any]:
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


_KEYS: Keys = {
    "vocab_size": (("vocab_size",), ...),
    "type_vocab_size": (("type_vocab_size",), ...),
    "num_layers": (("n_layer", "num_hidden_layers"), ...),
    "width": (("n_embd", "hidden_size"), ...),
    "num_heads": (("n_head", "num_attention_heads"), ...),
    "mlp_width": (("n_inner", "intermediate_size"), None),
    "layer_norm_epsilon": (("layer_norm_epsilon", "layer_norm_eps"), ...),
    "rope_base": (("rotary_emb_base", "rope_parameters.rope_theta"), ...),
    "trained_positions": (("max_trained_positions", "max_position_embeddings"), 2048),
    "rope_scaling_factor": (("rotary_scaling_factor", "rope_parameters.factor"), None),
    "pad_token_id": (("pad_token_id",), 0),
    "dropout": (("resid_pdrop", "hidden_dropout_prob"), 0.0),
    "initializer_range": (("initializer_range",), 0.02),
}
# What a mixture of experts must say; a dense model may say anything.
_FIXED_WITH_EXPERTS: Fixed = {
    "moe_every_n_layers": (2,),
    "moe_normalize_expert_weights": (False, None),
    "ffn_div": (1, None),
    "num_shared_experts": (0, None),
    "expert_choice_router": (False, None),
}
NOMIC_BERT = FamilySpec(
    keys=_KEYS,
    fixed={
        **FIXED,
        "prenorm": (False, None),
        "parallel_block": (False, None),
        "parallel_block_tied_norm": (False, None),
        "causal": (False, None),
        "use_rms_norm": (False, None),
        "norm_mlp": (False, None),
        "rotary_emb_interleaved": (False, None),
        "rotary_emb_scale_base": (None,),
        "rotary_head_dim": (False, None),
        "num_heads_kv": (None,),
        "scale_attn_weights": (True, None),
        "rope_parameters.rope_type": ("default", "dynamic"),
        "rope_parameters.partial_rotary_factor": (1.0, None),
    },
    fixed_with_experts=_FIXED_WITH_EXPERTS,
    derive=_derive,
    derived=frozenset(
        "activation_function hidden_act qkv_proj_bias mlp_fc1_bias mlp_fc2_bias "
        "rotary_emb_fraction num_experts moe_top_k moe_resid_pdrop n_positions".split()
    ),
    write=_write,
)
