"""Read a published config.json into `ModelConfig`, and write it in either key style.

Every key is mapped, fixed to the values that this encoder implements, or known to be
harmless; any other key is a problem, because it may change what the model computes. A
file that carries both key styles must say the same in both. Which head a file has
follows from its tensors and from its `architectures`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from nomic_jax.checkpoints.families.bert import absolute
from nomic_jax.checkpoints.families.nomic_bert import write_nomic
from nomic_jax.checkpoints.families.registry import FAMILIES
from nomic_jax.checkpoints.families.spec import (
    IGNORED,
    Family,
    Style,
    Values,
    family_of,
    native_style,
    typed,
)
from nomic_jax.checkpoints.families.tensor_names import CLASSIFIED
from nomic_jax.checkpoints.problems import Problem
from nomic_jax.config import Head, ModelConfig


def read_config_keys(
    values: Values, family: Family = "nomic_bert"
) -> tuple[dict[str, Any], list[Problem]]:
    """Translate a published config.json; what says which head there is is not read.

    Args:
        values: of the file.
        family: its `model_type`. Nomic's layout of BERT and XLM-R has `nomic_bert`, and
            absolute positions.

    Returns:
        Fields of `ModelConfig` by name, `mlp_width` None where it is null; and every
        key that is missing, contradictory, or asks for what is not implemented.
    """
    values = _flatten(values)
    problems: list[Problem] = []
    spec = FAMILIES[family]
    derived = spec.derive(values, problems)
    fields: dict[str, Any] = {}
    for field, (keys, absent) in spec.keys.items():
        if field not in derived:
            fields[field] = _field(values, family, field, keys, absent, problems)
    missing = [name for name, value in fields.items() if value is ...]
    for field in missing:
        first, *others = spec.keys[field][0]
        name = f"{first} (or {', '.join(others)})" if others else first
        problems.append(Problem("config", f"{name} is missing"))
        del fields[field]
    fields |= {name: value for name, value in derived.items() if value is not ...}
    if family in ("bert", "xlm-roberta") and "trained_positions" in fields:
        fields |= absolute(fields, family, fields["trained_positions"])
    problems += _refusals(values, fields, family)
    return fields, problems


def _flatten(values: Values) -> dict[str, Any]:
    """Write the rope's nested keys as one name with dots."""
    flat: dict[str, Any] = {}

    def add(name: str, nested: Values) -> None:
        for key, value in nested.items():
            key = "rope_type" if key == "type" else key
            if isinstance(value, dict):
                add(f"{name}.{key}", value)
            else:
                flat[f"{name}.{key}"] = value

    for key, value in values.items():
        if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            add("rope_parameters", value)
        elif key == "rope_theta":
            flat["rope_parameters.rope_theta"] = value
        elif key not in ("rope_parameters", "rope_scaling") or value is not None:
            flat[key] = value
    return flat


def _field(
    values: Values,
    family: Family,
    field: str,
    keys: tuple[str, ...],
    absent: Any,
    problems: list[Problem],
) -> Any:
    """Read one field; `...` says that it is missing."""
    given = {key: values[key] for key in keys if key in values}
    first, last = keys[0], keys[-1]
    if field == "trained_positions" and len(keys) > 1 and first in given:
        # GPT-2's configuration class writes its n_positions under this name.
        if given.get(last) == values.get("n_positions", ...):
            del given[last]
    if field == "rope_scaling_factor" and "rope_parameters.rope_type" in values:
        given.setdefault(last, None)  # a rotation that is spelt out: unscaled
    if field != "rope_scaling_factor":  # of which null is a value
        given = {key: value for key, value in given.items() if value is not None}
    given = {key: typed(field, key, given[key], problems) for key in given}
    if len(set(given.values())) > 1:
        said = " but ".join(f"{key} is {value}" for key, value in given.items())
        why = "the two key styles" if family == "nomic_bert" else "they"
        problems.append(Problem("config", said, f"({why} disagree)"))
    if given:
        return next(iter(given.values()))
    if field == "rope_base" and native_style(values) and absent is ...:
        return 1000.0  # transformers' default for NomicBERT
    return absent


def _refusals(values: Values, fields: Values, family: Family) -> list[Problem]:
    problems = []
    spec = FAMILIES[family]
    mapped = {key for keys, _ in spec.keys.values() for key in keys}
    known = (
        mapped | spec.derived | spec.ignored | IGNORED | set(spec.fixed_with_experts)
    )
    fixed = dict(spec.fixed)
    if fields.get("num_experts"):
        fixed.update(spec.fixed_with_experts)
    for key, value in values.items():
        if key in fixed:
            if value not in fixed[key]:
                choices = " or ".join(repr(v) for v in fixed[key] if v is not None)
                note = f"(only {choices or 'null'} is implemented)"
                problems.append(Problem("config", f"{key}={value!r}", note))
        elif key == "head_dim":
            heads = fields.get("num_heads") or 0
            if value is not None and value * heads != fields.get("width"):
                note = "(only hidden_size / num_attention_heads is implemented)"
                problems.append(Problem("config", f"{key}={value!r}", note))
        elif key not in known and not key.startswith("_"):
            note = "(an unknown key, which may change what the model computes)"
            problems.append(Problem("config", f"{key}={value!r}", note))
    if fields.get("num_experts") and "moe_every_n_layers" not in values:
        note = "(absent it is 1; only 2 is implemented)"
        problems.append(Problem("config", "moe_every_n_layers is missing", note))
    dynamic = values.get("rope_parameters.rope_type") == "dynamic"
    if dynamic != (values.get("rope_parameters.factor") is not None):
        note = "(rope_type='dynamic' and factor go together)"
        problems.append(Problem("config", "rope_parameters", note))
    return problems


# How the names of transformers' classes end; Nomic's pretraining is the MLM head alone.
ARCHITECTURES: Mapping[Head | None, str] = {
    None: "Model",
    "pooler": "Model",
    "mlm": "ForMaskedLM",
    "pretraining": "ForPreTraining",
    "next_sentence": "ForNextSentencePrediction",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
}
_CLASSES: Mapping[Family, str] = {
    "nomic_bert": "NomicBert",
    "bert": "Bert",
    "xlm-roberta": "XLMRoberta",
    "modernbert": "ModernBert",
}
_PROBLEMS = {
    "regression": "regression",
    "one_label": "single_label_classification",
    "many_labels": "multi_label_classification",
}
# What tells of each part of a head, among the tensors' names.
_SIGNS = {
    "predictions": r"cls\.predictions\..+|lm_head\..+|decoder\..+",
    "relation": r"cls\.seq_relationship\..+",
    "classifier": r"classifier\..+",
    "spans": r"qa_outputs\..+",
    "transform": r"head\.dense\..+",
    "pooler": r"(\w+\.)?pooler\.dense\..+|classifier\.dense\..+",
}


def read_head(
    values: Mapping[str, Any],
    fields: Mapping[str, Any],
    names: Collection[str],
    family: Family,
) -> tuple[dict[str, Any], list[Problem]]:
    """Find the head, and its fields of `ModelConfig`.

    The tensors decide, except where they are those of several heads, or of none that
    the config's `architectures` speak of: its tensors are then found missing.

    Args:
        values: of config.json.
        fields: read from it.
        names: of the tensors.
        family: the file's `model_type`.
    """
    problems: list[Problem] = []
    signs = {
        sign: any(re.fullmatch(pattern, name) for name in names)
        for sign, pattern in _SIGNS.items()
    }
    said = _said(values, nomic=family == "nomic_bert")
    head = _chosen(signs, said, family)
    found: dict[str, Any] = {"head": head}
    if head in ("mlm", "pretraining"):
        found["head_bias"] = _head_bias(values, fields, names, family)
    if head in ("sequence_classification", "token_classification"):
        found["labels"] = _labels(values, problems)
    if head == "sequence_classification":
        found["problem"] = _problem(values, len(found["labels"]), problems)
    if head in CLASSIFIED or head == "question_answering":
        found["head_dropout"] = _dropout(values, fields, head, family, problems)
    if family == "modernbert" and head in (
        "sequence_classification",
        "multiple_choice",
    ):
        found["head_pooling"] = values.get("classifier_pooling", "cls")
    if signs["classifier"] and head not in (*CLASSIFIED, "question_answering"):
        note = "(of which head? architectures in config.json must say it)"
        problems.append(Problem("config", "classifier.*", note))
    return found, problems


def _said(values: Mapping[str, Any], *, nomic: bool) -> Head | None:
    classes = " ".join(map(str, values.get("architectures") or ()))
    for head, suffix in ARCHITECTURES.items():
        if suffix != "Model" and re.search(rf"{suffix}\b", classes):
            return "mlm" if nomic and head == "pretraining" else head
    return None


def _chosen(
    signs: Mapping[str, bool], said: Head | None, family: Family
) -> Head | None:
    by_sign: dict[Head, bool] = {
        "pretraining": signs["predictions"] and signs["relation"],
        "mlm": signs["predictions"],
        "next_sentence": signs["relation"],
        "question_answering": signs["spans"],
    }
    classifier = signs["classifier"]
    for one in CLASSIFIED:
        by_sign[one] = classifier
    if family == "modernbert":  # whose classifiers stand on the MLM head's transform
        by_sign["question_answering"] = classifier
        by_sign["mlm"] |= signs["transform"] and not classifier
    told: list[Head] = [head for head, sign in by_sign.items() if sign]
    if said is not None and said not in told:
        return said
    if said in (*CLASSIFIED, "question_answering"):
        return said
    if classifier and family != "modernbert" and not signs["predictions"]:
        pooled = signs["pooler"]
        return "sequence_classification" if pooled else "token_classification"
    if said == "mlm" and "pretraining" not in told:
        return said
    others: list[Head] = [head for head in told if head not in CLASSIFIED]
    if family == "modernbert" and classifier:
        others = [head for head in others if head != "question_answering"]
    if others:
        return others[0]
    return "pooler" if signs["pooler"] else None


def _head_bias(values, fields, names: Collection[str], family: Family) -> bool:
    if family == "modernbert":
        return bool(values.get("decoder_bias", True))
    if family != "nomic_bert":
        return True
    heads = [name for name in names if name.startswith("cls.predictions.")]
    ends = [name for name in heads if name.endswith(".bias")]
    return any("norm" not in name.lower() for name in ends)


def _labels(values: Mapping[str, Any], problems: list[Problem]) -> tuple[str, ...]:
    given, count = values.get("id2label"), values.get("num_labels")
    if given is None:
        count = 2 if count is None else count  # transformers' own default
        count = typed("num_labels", "num_labels", count, problems) or 0
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        labels = {int(index): str(label) for index, label in given.items()}
    except (AttributeError, ValueError):
        labels = {}
    if not labels or sorted(labels) != list(range(len(labels))):
        note = "(labels by their numbers, 0, 1... are needed)"
        problems.append(Problem("config", f"id2label={given!r}", note))
    elif count not in (None, len(labels)):
        said = f"num_labels is {count} but id2label has {len(labels)}"
        problems.append(Problem("config", said))
    return tuple(labels[index] for index in sorted(labels))


def _problem(values: Mapping[str, Any], labels: int, problems: list[Problem]) -> str:
    given = values.get("problem_type")
    if given is None:  # as transformers concludes from labels that are whole numbers
        return "regression" if labels == 1 else "one_label"
    for problem, name in _PROBLEMS.items():
        if given == name:
            return problem
    note = f"(only {' or '.join(map(repr, _PROBLEMS.values()))} is)"
    problems.append(Problem("config", f"problem_type={given!r}", note))
    return "one_label"


def _dropout(values, fields, head: Head, family: Family, problems) -> float:
    given = values.get("classifier_dropout")
    if given is not None:
        key = "classifier_dropout"
        return typed("head_dropout", key, given, problems) or 0.0
    # Theirs fall back on the encoder's, but for spans; Nomic's on the embeddings'.
    if family == "modernbert" or head == "question_answering":
        return 0.0
    if "embd_pdrop" in values:
        return float(values["embd_pdrop"] or 0.0)
    return fields.get("dropout") or 0.0


def write_head_keys(config: ModelConfig, style: Style) -> dict[str, Any]:
    """Spell what config.json says of the head: the class, labels and dropout."""
    head, family = config.head, family_of(config)
    suffix = ARCHITECTURES[head]
    if style == "nomic":
        suffix = "ForPreTraining" if head == "mlm" else suffix
    name = "NomicBert" if style == "nomic" else _CLASSES[family]
    values: dict[str, Any] = {"architectures": [name + suffix]}
    if config.labels:
        values["id2label"] = {str(i): label for i, label in enumerate(config.labels)}
        values["label2id"] = {label: i for i, label in enumerate(config.labels)}
    if config.problem is not None:
        values["problem_type"] = _PROBLEMS[config.problem]
    if head in CLASSIFIED or head == "question_answering":
        values["classifier_dropout"] = config.head_dropout
    if config.pre_norm:
        values["classifier_pooling"] = config.head_pooling
    return values


def write_config_keys(config: ModelConfig, style: Style) -> dict[str, Any]:
    """Spell a config as config.json in one of the key styles.

    Reading it back gives an equal `ModelConfig`, where the layout has a place for it.
    """
    family = "nomic_bert" if style == "nomic" else family_of(config)
    values = {"model_type": family, **write_head_keys(config, style)}
    named = _named(config, family, first=style == "nomic")
    if style == "nomic":
        return {**values, **named, **write_nomic(config)}
    return {**values, **named, **FAMILIES[family].write(config)}


def _named(config: ModelConfig, family: Family, *, first: bool) -> dict[str, Any]:
    """Give every field that has a key of its own that key, Nomic's or the last."""
    named: dict[str, Any] = {}
    for field, (keys, _) in FAMILIES[family].keys.items():
        value, key = getattr(config, field), keys[0 if first else -1]
        if field == "dropout" and family == "modernbert":
            named |= dict.fromkeys(keys, value)
        elif "." not in key:  # the rope's are nested, and spelt below
            named[key] = value
    return named
