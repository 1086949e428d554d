"""What describes a family: its config keys, its tensor names, its supported layouts.

The axes of a tensor are letters: V words, T token types, P positions, D and d the
hidden size, F the MLP's, H heads, K the width of a head, E experts, N classes. `3.H.K`
is one axis that runs over three, the last fastest. `{query,key,value}` stands for
several tensors whose rows are joined in this order.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from nomic_jax.checkpoints.problems import Problem
from nomic_jax.config import Head, ModelConfig

# Whose names: Nomic's; those of transformers' files for each model type; and those
# that transformers has for NomicBERT in memory, and writes when asked to.
Naming = Literal[
    "nomic", "nomic_bert", "bert", "xlm-roberta", "modernbert", "nomic_bert in memory"
]


@dataclasses.dataclass(frozen=True)
class Published:
    """Where a parameter is in a file: tensors that are joined, or a share of one."""

    names: tuple[str, ...]  # `{}` is the layer
    share: tuple[int, int] = (0, 1)  # of the rows: which part, of how many
    inside: bool = True  # of the encoder, whose names may have a prefix

    def __str__(self) -> str:
        """Show the names as the table has them."""
        part, parts = self.share
        rows = f" rows {part + 1}/{parts}" if parts > 1 else ""
        return " ".join(self.names) + rows


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of parameter."""

    ours: str  # of a layer: under the layer's path
    axes: str
    published_axes: str
    names: Mapping[Naming, Published] = dataclasses.field(hash=False)


def _spelt(name: str, suffix: str, *, inside: bool = True) -> Published:
    """Spell `a.{b,c}` with a suffix; `@1/2` at the end is a share of the rows."""
    name, _, share = name.partition("@")
    found = re.search(r"\{(\w+(?:,\w+)+)\}", name)
    parts = found[1].split(",") if found else [""]
    whole = found[0] if found else ""
    names = tuple(
        name.replace(whole, part) + suffix if whole else name + suffix for part in parts
    )
    part, _, count = share.partition("/")
    return Published(names, (int(part) - 1, int(count)) if share else (0, 1), inside)


def row(
    ours: str,
    axes: str,
    published_axes: str,
    suffix: str = "",
    *,
    inside: bool = True,
    **names: str,
) -> Row:
    """Make a row; where a naming has no name of its own it has the one it follows."""
    columns: dict[Naming, str] = {}
    follows: tuple[tuple[Naming, str, Naming | None], ...] = (
        ("nomic", "nomic", None),
        ("nomic_bert", "native", "nomic"),
        ("bert", "bert", None),
        ("xlm-roberta", "roberta", "bert"),
        ("modernbert", "modern", None),
        ("nomic_bert in memory", "memory", "nomic_bert"),
    )
    for naming, key, other in follows:
        if key in names:
            columns[naming] = names[key]
        elif other in columns:
            columns[naming] = columns[other]
    spelt: dict[Naming, Published] = {
        naming: _spelt(name, suffix, inside=inside) for naming, name in columns.items()
    }
    return Row(ours, axes, published_axes, spelt)


def linear(ours: str, inputs: str, outputs: str, **names) -> tuple[Row, Row]:
    """Make the rows of a linear layer, whose published weight is `[out, in]`."""
    across = f"{outputs.replace(' ', '.')} {inputs.replace(' ', '.')}"
    kernel = row(f"{ours}.kernel", f"{inputs} {outputs}", across, ".weight", **names)
    return kernel, row(
        f"{ours}.bias", outputs, outputs.replace(" ", "."), ".bias", **names
    )


def norm(ours: str, **names) -> tuple[Row, Row]:
    """Make the rows of a layer norm."""
    return (
        row(f"{ours}.scale", "D", "D", ".weight", **names),
        row(f"{ours}.bias", "D", "D", ".bias", **names),
    )


# What config.json calls them, as `model_type`.
Family = Literal["nomic_bert", "bert", "xlm-roberta", "modernbert"]
Style = Literal["nomic", "transformers"]
# The heads that a family's classes in transformers have; None is the encoder alone.
NATIVE_HEADS: dict[Family, tuple[Head | None, ...]] = {
    "nomic_bert": (None, "mlm", "sequence_classification", "token_classification"),
    "bert": (
        *(None, "pooler", "mlm", "pretraining", "next_sentence"),
        *("sequence_classification", "token_classification"),
        *("question_answering", "multiple_choice"),
    ),
    "xlm-roberta": (
        *(None, "pooler", "mlm", "sequence_classification", "token_classification"),
        *("question_answering", "multiple_choice"),
    ),
    "modernbert": (
        *(None, "mlm", "sequence_classification", "token_classification"),
        *("question_answering", "multiple_choice"),
    ),
}


def family_of(config: ModelConfig) -> Family:
    """Return the family of a config: what its positions and norms are."""
    if config.pre_norm:
        return "modernbert"
    if config.rope_base is not None:
        return "nomic_bert"
    return "xlm-roberta" if config.first_position else "bert"


def naming_of(config: ModelConfig, style: Style) -> Naming:
    """Return whose names a file of a config has."""
    return "nomic" if style == "nomic" else family_of(config)


def unsupported_by(config: ModelConfig, style: Style) -> list[str]:
    """List why a published layout cannot hold a model; nothing where it can."""
    if style == "nomic":
        return list(_not_nomics(config))
    return list(_not_transformers(config))


def _not_nomics(config: ModelConfig) -> Iterator[str]:
    if config.pre_norm or config.global_every > 1:
        yield "Nomic's has no ModernBERT: use --to transformers"
        return
    if config.expert_bias:
        yield (
            "Nomic's has no biases of the experts' first layers (expert_bias): use "
            "--to jax, or upcycle with keep_biases=False"
        )
    if not config.norm_bias:
        yield "Nomic's layer norms have biases (norm_bias=False): use --to jax"
    if config.type_vocab_size < 1:
        yield "Nomic's has token types (type_vocab_size=0): use --to jax"
    scheme = config.pad_token_id + 1 if config.pad_token_id else 0
    if config.rope_base is None and config.first_position != scheme:
        yield (
            f"Nomic's first absolute position is {scheme} where pad_token_id="
            f"{config.pad_token_id}, not {config.first_position}: use --to transformers"
        )


def _not_transformers(config: ModelConfig) -> Iterator[str]:
    family = family_of(config)
    if config.num_experts:
        yield "transformers' has no mixture of experts: use --to nomic"
        return
    if config.head not in NATIVE_HEADS[family]:
        other = "jax" if family == "modernbert" else "nomic"
        yield (
            f"transformers' {family} has no head for {config.head}: use --to {other}"
        )
    if family == "nomic_bert" and (config.bias or config.activation == "gelu"):
        yield (
            "transformers' nomic_bert has a gated MLP and no biases, not activation="
            f"{config.activation!r} with bias={config.bias}: use --to nomic"
        )
    plain = config.activation == "gelu" and config.bias
    if family in ("bert", "xlm-roberta") and not plain:
        yield (
            f"transformers' {family} has gelu and biases, not activation="
            f"{config.activation!r} with bias={config.bias}: use --to nomic"
        )
    if family == "modernbert" and (
        config.activation != "geglu" or config.bias or config.type_vocab_size
    ):
        yield (
            "transformers' modernbert has geglu, no biases and no token types, not "
            f"activation={config.activation!r}, bias={config.bias}, type_vocab_size="
            f"{config.type_vocab_size}: use --to jax"
        )
    if config.norm_bias == (family == "modernbert"):
        yield (
            f"transformers' {family} has not norm_bias={config.norm_bias}: use --to jax"
        )
    if family != "modernbert" and config.global_every > 1:
        yield f"transformers' {family} has no local layers: use --to jax"
    if family == "xlm-roberta" and config.first_position != config.pad_token_id + 1:
        yield (
            f"transformers' xlm-roberta begins at position {config.pad_token_id + 1} "
            f"where pad_token_id={config.pad_token_id}, not {config.first_position}: "
            "use --to jax"
        )
    needs_bias = family != "nomic_bert" and config.head in ("mlm", "pretraining")
    if needs_bias and family != "modernbert" and not config.head_bias:
        yield (
            f"transformers' {family} has biases in its MLM head (head_bias=False): "
            "use --to nomic"
        )
    if family != "modernbert" and config.type_vocab_size < 1:
        yield f"transformers' {family} has token types: use --to jax"


# Field of ModelConfig: its keys, Nomic's (after GPT-2's) before transformers', and what
# absence means; where it means nothing, `...`, one of the keys must be there.
Keys = Mapping[str, tuple[tuple[str, ...], Any]]
FLOATS = frozenset(
    "layer_norm_epsilon rope_base local_rope_base dropout initializer_range "
    "rope_scaling_factor head_dropout expert_dropout".split()
)
# Keys of which one choice is implemented: any other value is refused.
Fixed = Mapping[str, tuple[Any, ...]]
FIXED: Fixed = {
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
    # the head's, read next to its tensors
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


Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """How a family's config.json is read, and written with transformers' keys."""

    keys: Keys  # one key or several for a field of ModelConfig
    fixed: Fixed  # keys of which this encoder implements one choice
    # The fields that take more than one key; problems are appended.
    derive: Callable[[Values, list[Problem]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]  # the keys that are not in `keys`
    derived: frozenset[str] = frozenset()  # keys that `derive` reads
    ignored: frozenset[str] = frozenset()  # keys that the files hold and nothing reads
    # Further fixed keys of a mixture of experts; a dense model may say anything there.
    fixed_with_experts: Fixed = dataclasses.field(default_factory=dict)


# Nomic's names of the activation, and transformers' for the same.
ACTIVATIONS = {"swiglu": ("silu", "swish"), "geglu": ("gelu",), "gelu": ("gelu",)}


def native_style(values: Values) -> bool:
    """Whether a config.json has transformers' keys and not Nomic's."""
    return "hidden_size" in values and "n_embd" not in values


def typed(field: str, key: str, value: Any, problems: list[Problem]) -> Any:
    """Return a key's value as the field's type, or None and a problem."""
    if field == "rope_scaling_factor" and not value:
        return None  # the reference asks whether it is truthy
    wanted = (int, float) if field in FLOATS else (int,)
    if isinstance(value, bool) or not isinstance(value, wanted):
        kind = "a number" if field in FLOATS else "a whole number"
        problems.append(Problem("config", f"{key}={value!r}", f"({kind} is needed)"))
        return None
    return float(value) if field in FLOATS else value
