"""The keys of config.json, by family: what they set, what they must be, what is passed.

Any other key is a problem, because it may change what the model computes.
"""

from collections.abc import Mapping
from typing import Any

from nomic_jax.checkpoints.families import Family

# Field of ModelConfig: its keys, Nomic's (after GPT-2's) before transformers', and what
# absence means; where it means nothing, `...`, one of the keys must be there.
Keys = Mapping[str, tuple[tuple[str, ...], Any]]
_NOMIC_BERT: Keys = {
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
_BERT: Keys = {
    "vocab_size": (("vocab_size",), ...),
    "type_vocab_size": (("type_vocab_size",), 2),
    "num_layers": (("num_hidden_layers",), ...),
    "width": (("hidden_size",), ...),
    "num_heads": (("num_attention_heads",), ...),
    "mlp_width": (("intermediate_size",), ...),
    "layer_norm_epsilon": (("layer_norm_eps",), 1e-12),
    "trained_positions": (("max_position_embeddings",), ...),  # rows of the table
    "pad_token_id": (("pad_token_id",), 0),
    "dropout": (("hidden_dropout_prob",), 0.1),
    "initializer_range": (("initializer_range",), 0.02),
}
KEYS: Mapping[Family, Keys] = {
    "nomic_bert": _NOMIC_BERT,
    "bert": _BERT,
    "xlm-roberta": {**_BERT, "pad_token_id": (("pad_token_id",), 1)},
    "modernbert": {
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
    },
}
FLOATS = frozenset(
    "layer_norm_epsilon rope_base local_rope_base dropout initializer_range "
    "rope_scaling_factor head_dropout expert_dropout".split()
)

# Keys of which one choice is implemented: any other value is refused.
Fixed = Mapping[str, tuple[Any, ...]]
_ALWAYS: Fixed = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "tie_word_embeddings": (True, None),
    "num_key_value_heads": (None,),
}
FIXED: Mapping[Family, Fixed] = {
    "nomic_bert": {
        **_ALWAYS,
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
    "bert": {**_ALWAYS, "hidden_act": ("gelu",)},
    "xlm-roberta": {**_ALWAYS, "hidden_act": ("gelu",)},
    "modernbert": {
        **_ALWAYS,
        "hidden_activation": ("gelu",),
        "classifier_activation": ("gelu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "norm_bias": (False, None),
        "classifier_bias": (False, None),
        "rope_parameters.full_attention.rope_type": ("default", None),
        "rope_parameters.sliding_attention.rope_type": ("default", None),
    },
}
# Of mixtures of experts alone; without experts they say nothing.
FIXED_EXPERTS: Fixed = {
    "moe_every_n_layers": (2,),
    "moe_normalize_expert_weights": (False, None),
    "ffn_div": (1, None),
    "num_shared_experts": (0, None),
    "expert_choice_router": (False, None),
}

# Read elsewhere, not by a table.
DERIVED: Mapping[Family, frozenset[str]] = {
    "nomic_bert": frozenset(
        "activation_function hidden_act qkv_proj_bias mlp_fc1_bias mlp_fc2_bias "
        "rotary_emb_fraction num_experts moe_top_k moe_resid_pdrop n_positions".split()
    ),
    "bert": frozenset(),
    "xlm-roberta": frozenset(),
    "modernbert": frozenset(
        "layer_types global_attn_every_n_layers local_attention decoder_bias "
        "classifier_pooling".split()
    ),
}
IGNORED = frozenset(
    # which kernel runs, not what it computes
    "use_flash_attn fused_bias_fc fused_dropout_add_ln fused_mlp use_xentropy "
    "dense_seq_output sequence_parallel process_group fused_attn last_layer_subset "
    "moe_impl reference_compile deterministic_flash_attn sparse_prediction "
    "sparse_pred_ignore_index repad_logits_with_grad "
    # of training elsewhere: a loss's weight, how fresh weights are drawn, and the
    # dropout of attention's weights, which this encoder does not have
    "router_aux_loss_coef initializer_cutoff_factor "
    "attn_pdrop attention_probs_dropout_prob "
    # allocation; what the tensors say; dropout that no layer reads
    "pad_vocab_size_multiple embd_pdrop add_pooling_layer "
    # left over: ModernBERT's is norm_eps; GPT-2's
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj reorder_and_upcast_attn scale_attn_by_inverse_layer_idx "
    # the head's, read beside its tensors
    "id2label label2id problem_type num_labels classifier_dropout architectures "
    # what sentence-transformers does to a cross-encoder's scores after the model (a
    # sigmoid or nothing), which the model itself leaves as they are; and its version
    "sentence_transformers sbert_ce_default_activation_function "
    # bookkeeping of transformers, and of generation
    "model_type auto_map torch_dtype dtype transformers_version "
    "use_cache finetuning_task task_specific_params "
    "output_attentions output_hidden_states return_dict torchscript use_bfloat16 "
    "tokenizer_class prefix bos_token_id eos_token_id sep_token_id cls_token_id "
    "mask_token_id decoder_start_token_id tf_legacy_loss gradient_checkpointing "
    "custom_pipelines directionality pooler_fc_size pooler_num_attention_heads "
    "pooler_num_fc_layers pooler_size_per_head pooler_type "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
    "suppress_tokens begin_suppress_tokens "
    # what is said about the embedding, read elsewhere
    "matryoshka_dimensions is_matryoshka nomic_jax_head_bias nomic_jax_pooler".split()
)
# Keys that one family's files hold and never read.
IGNORED_BY: Mapping[Family, frozenset[str]] = {
    "nomic_bert": frozenset(),
    "bert": frozenset(),
    "xlm-roberta": frozenset({"output_past"}),
    "modernbert": frozenset({"layer_norm_eps"}),
}
