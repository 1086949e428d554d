"""Types of options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Places = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="SOURCE ...", help_behavior_hint="(required)"),
]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Text = Annotated[str | None, tyro.conf.arg(metavar="STR")]
Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Fraction = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
Dtype = Literal["float32", "bfloat16"] | None
# As in `model.attention.backends`, which takes a while to import.
Attention = Literal["auto", "blockwise", "splash", "cudnn", "tokamax"]
