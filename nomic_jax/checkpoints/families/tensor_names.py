"""The names of every parameter, of encoders and of heads, in published files."""

import dataclasses
from collections.abc import Mapping

from nomic_jax.checkpoints.families.spec import Naming, Row, linear, norm, row
from nomic_jax.config import Head

# What is before the name of a parameter of a layer.
LAYERS: Mapping[Naming, str] = {
    "nomic": "encoder.layers.{}.",
    "nomic_bert": "encoder.layers.{}.",
    "bert": "encoder.layer.{}.",
    "xlm-roberta": "encoder.layer.{}.",
    "modernbert": "layers.{}.",
    "nomic_bert in memory": "layers.{}.",
}
_WORDS = "embeddings.word_embeddings"
_TYPES, _PLACES = "embeddings.token_type_embeddings", "embeddings.position_embeddings"
WORD_TABLE = row(
    "word_embedding.embedding",
    "V D",
    "V D",
    ".weight",
    nomic=_WORDS,
    bert=_WORDS,
    modern="embeddings.tok_embeddings",
)
TYPE_TABLE = row(
    "type_embedding.embedding", "T D", "T D", ".weight", nomic=_TYPES, bert=_TYPES
)
POSITION_TABLE = row(
    "position_embedding.embedding",
    "P D",
    "P D",
    ".weight",
    nomic=_PLACES,
    bert=_PLACES,
)
EMBEDDING_NORM = norm(
    "embedding_norm",
    nomic="emb_ln",
    bert="embeddings.LayerNorm",
    modern="embeddings.norm",
    memory="embeddings.LayerNorm",
)
FINAL_NORM = norm("final_norm", modern="final_norm")
ATTENTION = (
    *linear(
        "attention.qkv",
        "D",
        "3 H K",
        nomic="attn.Wqkv",
        modern="attn.Wqkv",
        bert="attention.self.{query,key,value}",
        memory="self_attn.{q,k,v}_proj",
    ),
    *linear(
        "attention.out",
        "H K",
        "D",
        nomic="attn.out_proj",
        modern="attn.Wo",
        bert="attention.output.dense",
        memory="self_attn.o_proj",
    ),
)
ATTENTION_NORM = norm(
    "attention_norm",
    nomic="norm1",
    bert="attention.output.LayerNorm",
    modern="attn_norm",
    memory="post_attention_layernorm",
)
MLP_NORM = norm(
    "mlp_norm",
    nomic="norm2",
    bert="output.LayerNorm",
    modern="mlp_norm",
    memory="post_mlp_layernorm",
)
# Of Nomic's two, fc12 gets the activation; of the rows of Wi, the first half.
GATED = (
    *linear(
        "mlp.up", "D", "F", nomic="mlp.fc11", memory="mlp.up_proj", modern="mlp.Wi@2/2"
    ),
    *linear(
        "mlp.gate",
        "D",
        "F",
        nomic="mlp.fc12",
        memory="mlp.gate_proj",
        modern="mlp.Wi@1/2",
    ),
    *linear(
        "mlp.down", "F", "D", nomic="mlp.fc2", memory="mlp.down_proj", modern="mlp.Wo"
    ),
)
PLAIN = (
    *linear("mlp.up", "D", "F", nomic="mlp.fc1", bert="intermediate.dense"),
    *linear("mlp.down", "F", "D", nomic="mlp.fc2", bert="output.dense"),
)
# Both published tensors have the experts' rows one after the other, and the width last.
EXPERTS = (
    row("mlp.router.kernel", "D E", "E D", nomic="mlp.router.layer.weight"),
    row("mlp.experts.up", "E D F", "E.F D", nomic="mlp.experts.mlp.w1"),
    row("mlp.experts.down", "E F D", "E.F D", nomic="mlp.experts.mlp.w2"),
    row("mlp.experts.bias", "D", "D", nomic="mlp.experts.bias"),
)
EXPERT_BIAS = row("mlp.experts.up_bias", "E F", "E.F")  # in no published layout


# Heads on BERT's pooler, and those that score the classes of a text or its tokens.
POOLED: tuple[Head, ...] = (
    *("pooler", "pretraining", "next_sentence"),
    *("sequence_classification", "multiple_choice"),
)
CLASSIFIED: tuple[Head, ...] = (
    *("sequence_classification", "token_classification", "multiple_choice"),
)
_POOLER, _TRANSFORM = "pooler.dense", "cls.predictions.transform"
POOLER = linear("pooler", "D", "d", nomic=_POOLER, bert=_POOLER)
CLASSIFIER = linear(
    "classifier",
    "D",
    "N",
    inside=False,
    nomic="classifier",
    bert="classifier",
    modern="classifier",
)
SPANS = linear(
    "classifier",
    "D",
    "N",
    inside=False,
    nomic="qa_outputs",
    bert="qa_outputs",
    modern="classifier",
)
_RELATION = "cls.seq_relationship"
NEXT_SENTENCE = linear(
    "next_sentence", "D", "N", inside=False, nomic=_RELATION, bert=_RELATION
)
TRANSFORM = (
    *linear(
        "head.dense",
        "D",
        "d",
        inside=False,
        nomic=f"{_TRANSFORM}.dense",
        bert=f"{_TRANSFORM}.dense",
        roberta="lm_head.dense",
        modern="head.dense",
    ),
    *norm(
        "head.norm",
        inside=False,
        nomic=f"{_TRANSFORM}.layer_norm",
        bert=f"{_TRANSFORM}.LayerNorm",
        roberta="lm_head.layer_norm",
        modern="head.norm",
    ),
)
HEAD_BIAS = row(
    "head.bias",
    "V",
    "V",
    ".bias",
    inside=False,
    nomic="cls.predictions.decoder",
    native="cls.predictions",
    bert="cls.predictions",
    roberta="lm_head",
    modern="decoder",
)


def _instead(rows: tuple[Row, ...], ours: str, outputs: str, name: str):
    """Give rows another name in XLM-R, outside the encoder."""
    others = linear(ours, "D", outputs, roberta=name, inside=False)
    return tuple(
        dataclasses.replace(row, names={**row.names, **other.names})
        for row, other in zip(rows, others, strict=True)
    )


# XLM-R's sequence classifier keeps both layers for itself.
XLM_POOLER = _instead(POOLER, "pooler", "d", "classifier.dense")
XLM_CLASSIFIER = _instead(CLASSIFIER, "classifier", "N", "classifier.out_proj")
# The word table, and the head's bias, under the second names of a tied decoder.
TIED: Mapping[Naming, str] = {
    "nomic": "cls.predictions.decoder",
    "nomic_bert": "cls.predictions.decoder",
    "bert": "cls.predictions.decoder",
    "xlm-roberta": "lm_head.decoder",
    "modernbert": "decoder",
    "nomic_bert in memory": "cls.predictions.decoder",
}
