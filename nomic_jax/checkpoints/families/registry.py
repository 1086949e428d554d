"""The encoder families by the `model_type` of their config.json."""

from collections.abc import Mapping

from nomic_jax.checkpoints.families.bert import BERT, XLM_ROBERTA
from nomic_jax.checkpoints.families.modernbert import MODERNBERT
from nomic_jax.checkpoints.families.nomic_bert import NOMIC_BERT
from nomic_jax.checkpoints.families.spec import Family, FamilySpec

FAMILIES: Mapping[Family, FamilySpec] = {
    "nomic_bert": NOMIC_BERT,
    "bert": BERT,
    "xlm-roberta": XLM_ROBERTA,
    "modernbert": MODERNBERT,
}
