"""config.json of published folders, in both key styles, to and from `ModelConfig`.

Every key is mapped, fixed to the values that this encoder implements, or known to be
harmless; any other is a problem, because it may change what the model computes. A file
that carries both styles must say the same in both.
"""

from collections.abc import Mapping
from typing import Any, Literal

from nomic_jax.checkpoints.problems import Problem
from nomic_jax.config import ModelConfig

Style = Literal["nomic", "transformers"]

# ModelConfig field: Nomic's key (after GPT-2's), transformers' key, and what absence
# means; where it means nothing, `...`, the field must be there in one of the styles.
KEYS: Mapping[str, tuple[str, str, Any]] = {
    "vocab_size": ("vocab_size", "vocab_size", ...),
    "type_vocab_size": ("type_vocab_size", "type_vocab_size", ...),
    "num_layers": ("n_layer", "num_hidden_layers", ...),
    "width": ("n_embd", "hidden_size", ...),
    "num_heads": ("n_head", "num_attention_heads", ...),
    "mlp_width": ("n_inner", "intermediate_size", None),
    "layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", ...),
    "rope_base": ("rotary_emb_base", "rope_parameters.rope_theta", ...),
    "trained_positions": ("max_trained_positions", "max_position_embeddings", 2048),
    "rope_scaling_factor": ("rotary_scaling_factor", "rope_parameters.factor", None),
    "pad_token_id": ("pad_token_id", "pad_token_id", 0),
    "dropout": ("resid_pdrop", "hidden_dropout_prob", 0.0),
    "initializer_range": ("initializer_range", "initializer_range", 0.02),
}
_FLOATS = ("layer_norm_epsilon", "rope_base", "dropout", "initializer_range")
_FLOATS += ("rope_scaling_factor",)

# What every NomicBERT has, whatever its keys say.
NOMIC_BERT: Mapping[str, Any] = {
    "activation": "swiglu",
    "bias": False,
    "first_position": 0,
}

# Keys that this encoder implements one choice of: any other value is refused.
FIXED: Mapping[str, tuple[Any, ...]] = {
    # Nomic's
    "activation_function": ("swiglu",),
    "prenorm": (False, None),
    "parallel_block": (False, None),
    "parallel_block_tied_norm": (False, None),
    "causal": (False, None),
    "use_rms_norm": (False, None),
    "norm_mlp": (False, None),
    "qkv_proj_bias": (False, None),
    "mlp_fc1_bias": (False, None),
    "mlp_fc2_bias": (False, None),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False, None),
    "rotary_emb_scale_base": (None,),
    "rotary_head_dim": (False, None),
    "num_experts": (0, None),
    "attn_pdrop": (0.0, None),
    "num_heads_kv": (None,),
    "scale_attn_weights": (True, None),
    # transformers'
    "hidden_act": ("silu", "swish"),
    "attention_probs_dropout_prob": (0.0, None),
    "num_key_value_heads": (None,),
    "rope_parameters.rope_type": ("default", "dynamic"),
    "rope_parameters.partial_rotary_factor": (1.0, None),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "tie_word_embeddings": (True, None),
}

IGNORED = frozenset(
    # which kernel runs, not what it computes
    "use_flash_attn fused_bias_fc fused_dropout_add_ln fused_mlp use_xentropy "
    "dense_seq_output sequence_parallel process_group fused_attn last_layer_subset "
    # settings of experts, read only where num_experts is above 0
    "moe_top_k moe_every_n_layers moe_normalize_expert_weights ffn_div moe_impl "
    "num_shared_experts expert_choice_router moe_resid_pdrop router_aux_loss_coef "
    # allocation; dropout before a head that is not read
    "n_positions pad_vocab_size_multiple embd_pdrop classifier_dropout "
    # left over from GPT-2
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj reorder_and_upcast_attn scale_attn_by_inverse_layer_idx "
    # bookkeeping of transformers, and of generation
    "model_type architectures auto_map torch_dtype dtype transformers_version "
    "use_cache id2label label2id problem_type num_labels finetuning_task "
    "task_specific_params "
    "output_attentions output_hidden_states return_dict torchscript use_bfloat16 "
    "tokenizer_class prefix bos_token_id eos_token_id sep_token_id "
    "decoder_start_token_id tf_legacy_loss gradient_checkpointing custom_pipelines "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
    "suppress_tokens begin_suppress_tokens "
    # what is said about the embedding, read elsewhere
    "matryoshka_dimensions is_matryoshka nomic_jax_head_bias".split()
)


def read_config_keys(
    values: Mapping[str, Any],
) -> tuple[dict[str, Any], list[Problem]]:
    """Translate a published config.json.

    Returns:
        Fields of `ModelConfig` by name, `mlp_width` None where it is null; and every
        key that is missing, contradictory, or asks for what is not implemented.
    """
    values = _flatten(values)
    problems: list[Problem] = []
    fields: dict[str, Any] = {}
    for field, keys in KEYS.items():
        nomic, native, absent = keys
        given = {key: values[key] for key in (nomic, native) if key in values}
        if field == "trained_positions" and nomic in given:
            # GPT-2's configuration class writes its n_positions under this name.
            if given.get(native) == values.get("n_positions", ...):
                del given[native]
        if field == "rope_scaling_factor" and "rope_parameters.rope_type" in values:
            given.setdefault(native, None)  # a rotation that is spelt out: unscaled
        if field != "rope_scaling_factor":  # of which null is a value
            given = {key: value for key, value in given.items() if value is not None}
        given = {key: _typed(field, key, given[key], problems) for key in given}
        if len(set(given.values())) > 1:
            said = " but ".join(f"{key} is {value}" for key, value in given.items())
            problems.append(Problem("config", said, "(the two key styles disagree)"))
        if given:
            fields[field] = next(iter(given.values()))
        elif field == "rope_base" and native_style(values):
            fields[field] = 1000.0  # transformers' default for this model
        elif absent is ...:
            name = f"{nomic} (or {native})" if nomic != native else nomic
            problems.append(Problem("config", f"{name} is missing"))
        else:
            fields[field] = absent
    problems += _refusals(values, fields)
    return {**fields, **NOMIC_BERT}, problems


def native_style(values: Mapping[str, Any]) -> bool:
    """Whether a config.json has transformers' keys and not Nomic's."""
    return "hidden_size" in values and "n_embd" not in values


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            for inner, inner_value in value.items():
                inner = "rope_type" if inner == "type" else inner
                flat[f"rope_parameters.{inner}"] = inner_value
        elif key == "rope_theta":
            flat["rope_parameters.rope_theta"] = value
        elif key not in ("rope_parameters", "rope_scaling") or value is not None:
            flat[key] = value
    return flat


def _typed(field: str, key: str, value: Any, problems: list[Problem]) -> Any:
    if field == "rope_scaling_factor" and not value:
        return None  # the reference asks whether it is truthy
    wanted = (int, float) if field in _FLOATS else (int,)
    if isinstance(value, bool) or not isinstance(value, wanted):
        kind = "a number" if field in _FLOATS else "a whole number"
        problems.append(Problem("config", f"{key}={value!r}", f"({kind} is needed)"))
        return None
    return float(value) if field in _FLOATS else value


def _refusals(values: Mapping[str, Any], fields: Mapping[str, Any]) -> list[Problem]:
    problems = []
    mapped = {key for nomic, native, _ in KEYS.values() for key in (nomic, native)}
    for key, value in values.items():
        if key in FIXED:
            if value not in FIXED[key]:
                known = " or ".join(repr(one) for one in FIXED[key] if one is not None)
                note = f"(only {known or 'null'} is implemented)"
                problems.append(Problem("config", f"{key}={value!r}", note))
        elif key == "head_dim":
            if value is not None and value * fields.get("num_heads", 0) != fields.get(
                "width"
            ):
                note = "(only hidden_size / num_attention_heads is implemented)"
                problems.append(Problem("config", f"{key}={value!r}", note))
        elif key not in mapped and key not in IGNORED and not key.startswith("_"):
            note = "(an unknown key, which may change what the model computes)"
            problems.append(Problem("config", f"{key}={value!r}", note))
    dynamic = values.get("rope_parameters.rope_type") == "dynamic"
    if dynamic != (values.get("rope_parameters.factor") is not None):
        note = "(rope_type='dynamic' and factor go together)"
        problems.append(Problem("config", "rope_parameters", note))
    return problems


def write_config_keys(config: ModelConfig, style: Style) -> dict[str, Any]:
    """Spell a config as config.json in one of the key styles.

    Reading it back gives an equal `ModelConfig`.
    """
    head = config.head is not None
    values: dict[str, Any] = {"model_type": "nomic_bert"}
    named = {
        KEYS[name][style == "transformers"]: getattr(config, name) for name in KEYS
    }
    if style == "nomic":
        return {
            **values,
            "architectures": ["NomicBertForPreTraining" if head else "NomicBertModel"],
            **named,
            "n_positions": config.trained_positions,
            "pad_vocab_size_multiple": 1 if config.vocab_size % 64 else 64,
            "activation_function": "swiglu",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            **dict.fromkeys(("causal", "prenorm", "parallel_block"), False),
            **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
            "use_rms_norm": False,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "tie_word_embeddings": True,
        }
    rope: dict[str, Any] = {"rope_theta": named.pop("rope_parameters.rope_theta")}
    factor = named.pop("rope_parameters.factor")
    rope["rope_type"] = "default" if factor is None else "dynamic"
    if factor is not None:
        rope["factor"] = factor
    return {
        **values,
        "architectures": ["NomicBertForMaskedLM" if head else "NomicBertModel"],
        **named,
        "hidden_act": "silu",
        "attention_probs_dropout_prob": 0.0,
        "head_dim": config.head_width,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
        **({"nomic_jax_head_bias": False} if head and not config.head_bias else {}),
    }
