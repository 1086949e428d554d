"""What each family's config.json says beside the keys that are one field each."""

from collections.abc import Callable, Mapping
from typing import Any

from nomic_jax.checkpoints.families import Family
from nomic_jax.checkpoints.key_tables import FLOATS
from nomic_jax.checkpoints.problems import Problem

Values = Mapping[str, Any]
# Nomic's names of the activation, and transformers' for the same.
ACTIVATIONS = {"swiglu": ("silu", "swish"), "geglu": ("gelu",), "gelu": ("gelu",)}
_BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")


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


def absolute(fields: Values, family: Family, rows: Any) -> dict[str, Any]:
    """Return the fields of BERT's positions, by the rows of their table."""
    pad = fields.get("pad_token_id") or 0
    # XLM-R's first position is the one after the padding's, which is its token's id.
    first = pad + 1 if family == "xlm-roberta" else 0
    trained = rows - first if isinstance(rows, int) else rows
    return {"first_position": first, "trained_positions": trained, "rope_base": None}


def _derive_nomic(values: Values, problems: list[Problem]) -> dict[str, Any]:
    native = native_style(values)
    fields = {
        "activation": _activation(values, native, problems),
        "bias": _bias(values, native, problems),
    }
    fraction = values.get("rotary_emb_fraction", 1.0 if native else 0.0)
    if fraction == 0:
        pad = values.get("pad_token_id") or 0
        family: Family = "xlm-roberta" if pad else "bert"
        rows = values.get("n_positions", values.get("max_position_embeddings"))
        if not isinstance(rows, int):
            name = "n_positions is missing"
            problems.append(Problem("config", name, "(rows of absolute positions)"))
            rows = ...
        fields |= absolute(values, family, rows) | {"rope_scaling_factor": None}
    elif fraction != 1:
        note = "(only 1.0, rotary, or 0.0, absolute positions, is implemented)"
        problems.append(Problem("config", f"rotary_emb_fraction={fraction!r}", note))
    if experts := values.get("num_experts"):
        fields["num_experts"] = typed("num_experts", "num_experts", experts, problems)
        for field, key, absent in (
            ("experts_per_token", "moe_top_k", 1),
            ("expert_dropout", "moe_resid_pdrop", 0.0),
        ):
            value = values.get(key)
            value = absent if value is None else value
            fields[field] = typed(field, key, value, problems)
    return fields


def _activation(values: Values, native: bool, problems: list[Problem]) -> Any:
    given, theirs = values.get("activation_function"), values.get("hidden_act")
    if given is None and not native:
        problems.append(Problem("config", "activation_function is missing"))
        return ...
    if given is None:
        theirs = "silu" if theirs is None else theirs
        for name in ("swiglu", "geglu"):
            if theirs in ACTIVATIONS[name]:
                return name
        note = "(only 'silu' or 'gelu', which gate here, is implemented)"
        problems.append(Problem("config", f"hidden_act={theirs!r}", note))
        return ...
    if given not in ACTIVATIONS:
        note = f"(only {' or '.join(map(repr, ACTIVATIONS))}, exact, is implemented)"
        problems.append(Problem("config", f"activation_function={given!r}", note))
        return ...
    if theirs is not None and theirs not in ACTIVATIONS[given]:
        said = f"activation_function is {given} but hidden_act is {theirs}"
        problems.append(Problem("config", said, "(the two key styles disagree)"))
    return given


def _bias(values: Values, native: bool, problems: list[Problem]) -> bool:
    # What is absent is True in Nomic's class, and False in transformers'.
    given = {key: bool(values.get(key, not native)) for key in _BIASES}
    if len(set(given.values())) > 1:
        said = ", ".join(f"{key}={value}" for key, value in given.items())
        problems.append(Problem("config", said, "(only one choice for all three is)"))
    return any(given.values())


def _derive_bert(values: Values, problems: list[Problem]) -> dict[str, Any]:
    return {"activation": "gelu", "bias": True}


def _derive_modern(values: Values, problems: list[Problem]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        **{"activation": "geglu", "bias": False, "pre_norm": True},
        **{"norm_bias": False, "type_vocab_size": 0},
    }
    key = "global_attn_every_n_layers"
    every, kinds = values.get(key), values.get("layer_types")
    layers = values.get("num_hidden_layers")
    if every is None and isinstance(kinds, list):
        others = [i for i, kind in enumerate(kinds) if i and kind == "full_attention"]
        # Without a second global layer, any distance beyond the end is the same model.
        every = others[0] if others else max(3, len(kinds))
        every = every if "sliding_attention" in kinds else 1
    every = typed("global_every", key, 3 if every is None else every, problems)
    if isinstance(kinds, list) and isinstance(layers, int) and every:
        pattern = [
            f"{'sliding' if i % every else 'full'}_attention" for i in range(layers)
        ]
        if kinds != pattern:
            note = f"({key}={every}: full attention in layers 0, {every}... only)"
            problems.append(Problem("config", f"layer_types={kinds!r}", note))
    fields["global_every"] = every or 1
    if fields["global_every"] == 1:
        return {**fields, "local_window": None, "local_rope_base": None}
    window = values.get("local_attention", 128)  # both ways together
    window = typed("local_window", "local_attention", window, problems)
    if window is not None and (window < 2 or window % 2):
        note = "(half of it lies on either side: an even number from 2 on is needed)"
        problems.append(Problem("config", f"local_attention={window!r}", note))
        window = 2
    fields["local_window"] = ... if window is None else window // 2
    return fields


DERIVE: Mapping[Family, Callable[[Values, list[Problem]], dict[str, Any]]] = {
    "nomic_bert": _derive_nomic,
    "bert": _derive_bert,
    "xlm-roberta": _derive_bert,
    "modernbert": _derive_modern,
}
