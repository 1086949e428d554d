"""config.json of published folders, in both key styles, read into `ModelConfig`.

Every key is mapped, fixed to the values that this encoder implements, or known to be
harmless; any other is a problem, because it may change what the model computes. A file
that carries both styles must say the same in both.
"""

from typing import Any

from nomic_jax.checkpoints.config_families import (
    DERIVE,
    Values,
    absolute,
    native_style,
    typed,
)
from nomic_jax.checkpoints.families import Family
from nomic_jax.checkpoints.key_tables import (
    DERIVED,
    FIXED,
    FIXED_EXPERTS,
    IGNORED,
    IGNORED_BY,
    KEYS,
)
from nomic_jax.checkpoints.problems import Problem


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
    derived = DERIVE[family](values, problems)
    fields: dict[str, Any] = {}
    for field, (keys, absent) in KEYS[family].items():
        if field not in derived:
            fields[field] = _field(values, family, field, keys, absent, problems)
    missing = [name for name, value in fields.items() if value is ...]
    for field in missing:
        first, *others = KEYS[family][field][0]
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
    mapped = {key for keys, _ in KEYS[family].values() for key in keys}
    known = mapped | DERIVED[family] | IGNORED | IGNORED_BY[family]
    if family == "nomic_bert":
        known |= set(FIXED_EXPERTS)
    fixed = dict(FIXED[family])
    if fields.get("num_experts"):
        fixed.update(FIXED_EXPERTS)
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
