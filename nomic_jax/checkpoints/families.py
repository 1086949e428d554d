"""The families of encoders, and which layout has a place for which model."""

from collections.abc import Iterator
from typing import Literal

from nomic_jax.checkpoints.row import Naming
from nomic_jax.config import Head, ModelConfig

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


def no_place(config: ModelConfig, style: Style) -> list[str]:
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
