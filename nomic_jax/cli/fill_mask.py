"""The command `nomic-jax fill-mask`."""

import dataclasses
from typing import Annotated

import tyro

from nomic_jax.cli.options import Model


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Print what a model would put in place of each mask, and how probable it is."""

    model: Model  # folder or hub id of a model that has an MLM head
    # with the model's own mask, [MASK] or <mask>; -: a text a line of standard input
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    top: int = 5  # candidates of each mask


def fill_mask(options: FillMask) -> int:
    """Run `nomic-jax fill-mask`: a line for each candidate."""
    from nomic_jax.inference.masked_tokens import filled_lines

    for line in filled_lines(options.model, options.text, top=options.top):
        print(line, flush=True)
    return 0
