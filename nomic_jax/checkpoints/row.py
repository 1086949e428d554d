"""The rows of the table of names: a parameter of ours, and its published names.

Axes are letters: V words, T token types, P positions, D and d the width, F the MLP's,
H heads, K the width of a head, E experts, N classes. `3.H.K` is one axis that runs over
three, the last fastest. `{query,key,value}` stands for several tensors whose rows are
joined, in this order.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

# Whose names: Nomic's; those of transformers' files for each model type; and those
# that transformers has for NomicBERT in memory, and writes when asked to.
Naming = Literal[
    "nomic", "nomic_bert", "bert", "xlm-roberta", "modernbert", "nomic_bert in memory"
]


@dataclasses.dataclass(frozen=True)
class Published:
    """Where a parameter lies in a file: tensors that are joined, or a share of one."""

    names: tuple[str, ...]  # `{}` is the layer
    share: tuple[int, int] = (0, 1)  # of the rows: which part, of how many
    inside: bool = True  # of the encoder, whose names may have a prefix

    def __str__(self) -> str:
        """Show the names as they stand in the table."""
        part, parts = self.share
        rows = f" rows {part + 1}/{parts}" if parts > 1 else ""
        return " ".join(self.names) + rows


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of parameter."""

    ours: str  # of a layer: under the layer's path
    axes: str
    published_axes: str
    names: Mapping[Naming, Published] = dataclasses.field(hash=False)


def _spelt(name: str, suffix: str, *, inside: bool = True) -> Published:
    """Spell `a.{b,c}` with a suffix; `@1/2` at the end is a share of the rows."""
    name, _, share = name.partition("@")
    found = re.search(r"\{(\w+(?:,\w+)+)\}", name)
    parts = found[1].split(",") if found else [""]
    whole = found[0] if found else ""
    names = tuple(
        name.replace(whole, part) + suffix if whole else name + suffix for part in parts
    )
    part, _, count = share.partition("/")
    return Published(names, (int(part) - 1, int(count)) if share else (0, 1), inside)


def row(
    ours: str,
    axes: str,
    published_axes: str,
    suffix: str = "",
    *,
    inside: bool = True,
    **names: str,
) -> Row:
    """Make a row; where a naming has no name of its own it has the one it follows."""
    columns: dict[Naming, str] = {}
    follows: tuple[tuple[Naming, str, Naming | None], ...] = (
        ("nomic", "nomic", None),
        ("nomic_bert", "native", "nomic"),
        ("bert", "bert", None),
        ("xlm-roberta", "roberta", "bert"),
        ("modernbert", "modern", None),
        ("nomic_bert in memory", "memory", "nomic_bert"),
    )
    for naming, key, other in follows:
        if key in names:
            columns[naming] = names[key]
        elif other in columns:
            columns[naming] = columns[other]
    spelt: dict[Naming, Published] = {
        naming: _spelt(name, suffix, inside=inside) for naming, name in columns.items()
    }
    return Row(ours, axes, published_axes, spelt)


def linear(ours: str, inputs: str, outputs: str, **names) -> tuple[Row, Row]:
    """Make the rows of a linear layer, whose published weight is `[out, in]`."""
    across = f"{outputs.replace(' ', '.')} {inputs.replace(' ', '.')}"
    kernel = row(f"{ours}.kernel", f"{inputs} {outputs}", across, ".weight", **names)
    return kernel, row(
        f"{ours}.bias", outputs, outputs.replace(" ", "."), ".bias", **names
    )


def norm(ours: str, **names) -> tuple[Row, Row]:
    """Make the rows of a layer norm."""
    return (
        row(f"{ours}.scale", "D", "D", ".weight", **names),
        row(f"{ours}.bias", "D", "D", ".bias", **names),
    )
