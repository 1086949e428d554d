"""The values of published models: their encoders, and how they embed.

NomicBERT: Nussbaum et al. 2024 (arXiv:2402.01613), section 3 and Table 2, and for the
mixture of experts Nussbaum and Duderstadt 2025 (arXiv:2502.07972). ModernBERT: Warner
et al. 2024 (arXiv:2412.13663), appendix A. BERT: Devlin et al. 2018 (arXiv:1810.04805).
XLM-R: Conneau et al. 2019 (arXiv:1911.02116).
"""

import dataclasses
from collections.abc import Mapping

from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig, ModelConfig

_NOMIC_BERT = ModelConfig(
    vocab_size=30528,
    type_vocab_size=2,
    num_layers=12,
    width=768,
    num_heads=12,
    mlp_width=3072,
    layer_norm_epsilon=1e-12,
    rope_base=1000.0,
    trained_positions=2048,
)

_NOMIC_XLM = dataclasses.replace(
    _NOMIC_BERT,
    vocab_size=250048,
    type_vocab_size=1,
    layer_norm_epsilon=1e-5,
    rope_base=10000.0,
    activation="gelu",
    bias=True,
    pad_token_id=1,
)

_BERT = dataclasses.replace(
    _NOMIC_BERT,
    vocab_size=30522,
    rope_base=None,
    trained_positions=512,
    activation="gelu",
    bias=True,
    dropout=0.1,
)

_XLM_ROBERTA = dataclasses.replace(
    _BERT,
    vocab_size=250002,
    type_vocab_size=1,
    layer_norm_epsilon=1e-5,
    pad_token_id=1,
    first_position=2,
)

_MODERN_BERT = ModelConfig(
    vocab_size=50368,
    type_vocab_size=0,
    num_layers=22,
    width=768,
    num_heads=12,
    mlp_width=1152,
    layer_norm_epsilon=1e-5,
    rope_base=160000.0,
    trained_positions=8192,
    activation="geglu",
    pre_norm=True,
    norm_bias=False,
    global_every=3,
    local_window=64,
    local_rope_base=10000.0,
    pad_token_id=50283,
)

PUBLISHED: Mapping[str, ModelConfig] = {
    "nomic-bert-2048": dataclasses.replace(_NOMIC_BERT, head="mlm"),
    "nomic-embed-text-v1": _NOMIC_BERT,
    "nomic-embed-text-v1.5": _NOMIC_BERT,
    "nomic-xlm-2048": dataclasses.replace(_NOMIC_XLM, head="mlm", head_bias=True),
    "nomic-embed-text-v2-moe": dataclasses.replace(_NOMIC_XLM, num_experts=8),
    "bert-base-uncased": dataclasses.replace(_BERT, head="pretraining", head_bias=True),
    "xlm-roberta-base": dataclasses.replace(_XLM_ROBERTA, head="mlm", head_bias=True),
    "ModernBERT-base": dataclasses.replace(_MODERN_BERT, head="mlm", head_bias=True),
    "ModernBERT-large": dataclasses.replace(
        _MODERN_BERT,
        num_layers=28,
        width=1024,
        num_heads=16,
        mlp_width=2624,
        head="mlm",
        head_bias=True,
    ),
    "modernbert-embed-base": _MODERN_BERT,
}

_NO_PROMPTS = dict.fromkeys(NOMIC_PROMPTS, "")
_PLAIN = EmbeddingConfig(
    pooling="mean", layer_norm=False, max_length=512, prompts=_NO_PROMPTS
)
_BGE = dataclasses.replace(
    _PLAIN,
    pooling="cls",
    prompts={
        **_NO_PROMPTS,
        "search_query": "Represent this sentence for searching relevant passages: ",
    },
)
# e5 has a prefix for passages, and "query: " for all that is no passage.
_E5 = dataclasses.replace(
    _PLAIN,
    prompts={**dict.fromkeys(NOMIC_PROMPTS, "query: "), "search_document": "passage: "},
)

PUBLISHED_EMBEDDINGS: Mapping[str, EmbeddingConfig] = {
    "nomic-embed-text-v1": EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=2048
    ),
    "nomic-embed-text-v1.5": EmbeddingConfig(
        pooling="mean",
        layer_norm=True,
        max_length=2048,
        matryoshka_dims=(768, 512, 256, 128, 64),
    ),
    "nomic-embed-text-v2-moe": EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=512, matryoshka_dims=(768, 256)
    ),
    "modernbert-embed-base": EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=8192, matryoshka_dims=(768, 256)
    ),
    "all-MiniLM-L6-v2": dataclasses.replace(_PLAIN, max_length=256),
    "gte-small": _PLAIN,
    "gte-base": _PLAIN,
    "bge-small-en-v1.5": _BGE,
    "bge-base-en-v1.5": _BGE,
    "e5-small-v2": _E5,
    "e5-base-v2": _E5,
    "multilingual-e5-small": _E5,
    "multilingual-e5-base": _E5,
}
