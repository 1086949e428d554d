"""docs/conversion.md, written from the rules themselves.

python -m tools.conversion_table > docs/conversion.md
"""

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from nomic_jax.checkpoints.config_json import ARCHITECTURES, write_head_keys
from nomic_jax.checkpoints.families.registry import FAMILIES
from nomic_jax.checkpoints.families.spec import (
    Family,
    Fixed,
    Style,
    family_of,
    naming_of,
    unsupported_by,
)
from nomic_jax.checkpoints.names import PREFIXES, rules_for
from nomic_jax.checkpoints.reader import STYLES
from nomic_jax.checkpoints.writer import as_written
from nomic_jax.config import PUBLISHED, Head, ModelConfig
from nomic_jax.model.encoder import layer_places

# A published model of each kind, and what the document calls the kind.
_KINDS = {
    "NomicBERT": "nomic-embed-text-v1.5",
    "NomicBERT with biases": "nomic-xlm-2048",
    "NomicBERT-MoE": "nomic-embed-text-v2-moe",
    "BERT": "bert-base-uncased",
    "XLM-R": "xlm-roberta-base",
    "ModernBERT": "ModernBERT-base",
}
_TOP = """\
# Conversion between layouts

<!-- Written by `python -m tools.conversion_table`; a test holds it so. -->

`convert_torch_weights.py SOURCE DEST --to LAYOUT` reads a folder of any layout below, a
sentence-transformers folder or a hub id, and writes another. Every tensor of the source
has a place, or the source is refused with all reasons at once; there and back the
tensors are the same bits, in the dtype they are stored in.

`jax`, this project's own layout, holds every model. `sentence-transformers` holds every
encoder: its files are transformers' where there is a class for the model, else Nomic's
with the code that loads them named in config.json (`trust_remote_code=True`).
"""
_AROUND = """\
## Around the names

* Before the names of an encoder may stand {prefixes} or
  nothing; what is written has the prefix of the class that loads it.
* `LayerNorm.gamma` and `LayerNorm.beta` of old files are read as `weight` and `bias`.
* `position_ids`, `token_type_ids` and `rotary_emb.*` are computed, and passed over.
* A tied decoder's `weight` may be stored too, and must equal the word table; its `bias`
  is a second name of the head's. Nomic's layout is written with them, as its code loads
  files strictly, and transformers' without, as its own `save_pretrained`.
* A pooler next to a head of BERT or XLM-R that never reads it (MLM, tokens, questions)
  is left out, as transformers' classes have none there.
* transformers' NomicBERT has biases in its MLM head, and its BERT and XLM-R a pooler.
  Where a model has none they are written as zeros and marked in config.json
  (`nomic_jax_head_bias`, `nomic_jax_pooler`); reading takes them away again unless they
  have been trained.
* Dropout of attention's weights is not implemented: its rate is passed over when read,
  and written for BERT and XLM-R as the rate of the residual branches, which theirs is.
"""
_AXES = """\
Axes are those of one layer: V words, T token types, P positions, D and d the width,
F the MLP's, H heads, K a head's width, E experts, N classes. A published tensor has the
same ones in its own order, `[out, in]` where it is a linear layer's. Names with a space
between are joined by their rows; `rows 1/2` is the first half of a tensor's; `{}` is
the layer.
"""


def document() -> str:
    """Return the whole of docs/conversion.md."""
    prefixes = ", ".join(f"`{prefix}`" for prefix in PREFIXES if prefix)
    parts = [
        _TOP,
        "## Which layout holds which model\n",
        _matrix(),
        _AROUND.format(prefixes=prefixes),
        "## Names\n",
        _AXES,
        *_encoders(),
        "### Heads\n",
        "Where transformers has no class there is no name. Before `pooler` is the\n"
        "encoder's prefix.\n",
        _heads(),
        "## Keys of config.json\n",
        "Each field of `ModelConfig` with the keys it is read from, and what absence\n"
        "means. Other keys must have the values below, or are known to be harmless;\n"
        "any key that is neither is refused.\n",
        *_keys(),
    ]
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def with_head(config: ModelConfig, head: Head | None) -> ModelConfig | None:
    """Return a config with another head; None where its family has none such."""
    labelled = head in ("sequence_classification", "token_classification")
    try:
        return dataclasses.replace(
            config,
            head=head,
            head_bias=head in ("mlm", "pretraining") and _biased(config),
            labels=("LABEL_0", "LABEL_1") if labelled else (),
            problem="one_label" if head == "sequence_classification" else None,
        )
    except ValueError:
        return None


def _biased(config: ModelConfig) -> bool:
    return config.bias or config.pre_norm


def _matrix() -> str:
    rows = []
    for kind, name in _KINDS.items():
        for head in ARCHITECTURES:
            config = with_head(PUBLISHED[name], head)
            if config is None:
                continue
            native = write_head_keys(config, "transformers")["architectures"][0]
            rows.append(
                [
                    kind if head is None else "",
                    str(head or "none"),
                    "no" if unsupported_by(config, "nomic") else "yes",
                    "no" if unsupported_by(config, "transformers") else f"`{native}`",
                ]
            )
    return table(["model", "head", "`nomic`", "`transformers`"], rows)


def _encoders() -> Iterator[str]:
    for kind, name in _KINDS.items():
        config = with_head(PUBLISHED[name], None)
        assert config is not None
        styles: list[Style] = [
            style for style in STYLES if not unsupported_by(config, style)
        ]
        columns = [_column(config, style) for style in styles]
        paths = {place.path: place.layers for place in layer_places(config)}
        found: dict[tuple[str, ...], None] = {}
        for rule in rules_for(config):
            names = tuple(column[rule.ours] for column in columns)
            ours = rule.ours.removeprefix("encoder.")
            path = next((p for p in paths if ours.startswith(f"{p}.")), None)
            if path is not None and len(paths) > 1:
                ours = f"LAYERS{ours.removeprefix(path)}"
            found[(f"`{ours}`", f"`{rule.axes}`", *names)] = None
        yield f"### {kind}\n"
        if len(paths) > 1:
            told = [f"`{path}` {_few(layers)}" for path, layers in paths.items()]
            yield f"LAYERS, as of {name}: {'; '.join(told)}\n"
        yield table(["ours, after `encoder.`", "axes", *map(_code, styles)], found)


def _heads() -> str:
    """Give the rows of all heads: a name is of the heads that stand before it."""
    families = get_args(Family)
    heads: dict[tuple[str, ...], list[str]] = {}
    for head in get_args(Head):
        found: dict[str, list[str]] = {}
        for name in _KINDS.values():
            config = with_head(PUBLISHED[name], head)
            if config is None:
                continue
            own = 1 + families.index(family_of(config))
            for style, column in zip(STYLES, (0, own), strict=True):
                if unsupported_by(config, style):
                    continue
                for ours, published in _column(config, style).items():
                    if not ours.startswith("encoder."):
                        found.setdefault(ours, [""] * 5)[column] = published
        for ours, names in found.items():
            heads.setdefault((f"`{ours}`", *names), []).append(head)
    rows = [(" ".join(told), *row) for row, told in heads.items()]
    return table(["heads", "ours", *map(_code, ("nomic", *families))], rows)


def _column(config: ModelConfig, style: Style) -> dict[str, str]:
    rules = rules_for(as_written(config, style), naming_of(config, style))
    return {rule.ours: f"`{rule.published}`" for rule in rules}


def _code(text: str) -> str:
    return f"`{text}`"


def _few(layers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, layers[:3]))
    return f"{shown}..." if len(layers) > 3 else shown


def _keys() -> Iterator[str]:
    fixed = {
        family: {**spec.fixed, **spec.fixed_with_experts}
        for family, spec in FAMILIES.items()
    }
    shared = set.intersection(*(set(keys) for keys in fixed.values()))
    yield "In all families:\n"
    yield _only(fixed["bert"], sorted(shared))
    for family, only in fixed.items():
        rows = []
        for field, (keys, absent) in FAMILIES[family].keys.items():
            shown = ", ".join(map(_code, keys))
            rows.append([f"`{field}`", shown, "" if absent is ... else f"`{absent}`"])
        yield f"### {family}\n"
        yield table(["field", "keys", "absent"], rows)
        own = sorted(set(only) - shared)
        if own:
            yield _only(only, own)


def _only(fixed: Fixed, keys: Iterable[str]) -> str:
    said = (f"`{key}` {' or '.join(f'`{v}`' for v in fixed[key])}" for key in keys)
    return textwrap.fill(f"only {'; '.join(said)}.", 88, break_long_words=False) + "\n"


if __name__ == "__main__":
    print(document(), end="")
