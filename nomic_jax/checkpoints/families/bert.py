"""BERT and XLM-R: absolute positions, post-norm, GELU (arXiv:1810.04805, 1911.02116).

XLM-R is BERT with positions that are numbered from the token after the padding token.
"""

from typing import Any

from nomic_jax.checkpoints.families.spec import FIXED, Family, FamilySpec, Keys, Values
from nomic_jax.checkpoints.problems import Problem
from nomic_jax.config import ModelConfig


def absolute(fields: Values, family: Family, rows: Any) -> dict[str, Any]:
    """Return the fields of BERT's positions, by the rows of their table."""
    pad = fields.get("pad_token_id") or 0
    # XLM-R's first position is the one after the padding's, which is its token's id.
    first = pad + 1 if family == "xlm-roberta" else 0
    trained = rows - first if isinstance(rows, int) else rows
    return {"first_position": first, "trained_positions": trained, "rope_base": None}


def _derive(values: Values, problems: list[Problem]) -> dict[str, Any]:
    return {"activation": "gelu", "bias": True}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": config.first_position + config.trained_positions,
        "position_embedding_type": "absolute",
        "hidden_act": "gelu",
        # Theirs have one rate everywhere; this encoder drops no attention weights.
        "attention_probs_dropout_prob": config.dropout,
        "tie_word_embeddings": True,
    }


_KEYS: Keys = {
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

BERT = FamilySpec(
    keys=_KEYS,
    fixed={**FIXED, "hidden_act": ("gelu",)},
    derive=_derive,
    write=_write,
)
XLM_ROBERTA = FamilySpec(
    keys={**_KEYS, "pad_token_id": (("pad_token_id",), 1)},
    fixed=BERT.fixed,
    derive=_derive,
    write=_write,
    ignored=frozenset({"output_past"}),
)
