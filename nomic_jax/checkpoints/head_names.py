"""What the parameters of heads are called in published files."""

import dataclasses
from collections.abc import Mapping

from nomic_jax.checkpoints.row import Naming, Row, linear, norm, row
from nomic_jax.config import Head

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
