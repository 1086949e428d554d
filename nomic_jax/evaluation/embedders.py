"""The embedders of one evaluation: same weights, other lengths, and a prompt a task."""

import dataclasses
import logging
from collections.abc import Sequence

import jax

from nomic_jax.config import NOMIC_PROMPTS
from nomic_jax.embedder import Embedder
from nomic_jax.evaluation.prompts import completed

logger = logging.getLogger(__name__)


def all_dims(embedder: Embedder) -> tuple[int, ...]:
    """Return the dimensions an embedder was trained for, its full width first."""
    dims = {embedder.width, *embedder.config.matryoshka_dims}
    return tuple(sorted(dims, reverse=True))


def check_dims(embedder: Embedder, dims: Sequence[int]) -> None:
    """Refuse dimensions that the model was not trained for.

    Raises:
        ValueError: there is one.
    """
    known = all_dims(embedder)
    if wrong := [dim for dim in dims if dim not in known]:
        raise ValueError(
            f"dims {', '.join(map(str, wrong))} are not the model's, which was trained "
            f"for {', '.join(map(str, known))}"
        )


def at_lengths(
    embedder: Embedder,
    lengths: Sequence[int],
    *,
    rotary_scaling_factor: float | None = None,
) -> dict[int, Embedder]:
    """Return embedders of the same weights that cut texts at each length.

    Args:
        embedder: whose weights they share.
        lengths: tokens, special ones included.
        rotary_scaling_factor: alpha of Dynamic NTK; None keeps the model's.

    Raises:
        ValueError: the model cannot take a length.
    """
    model = embedder.model
    if rotary_scaling_factor is not None:
        model = jax.tree.map(lambda leaf: leaf, model)  # its arrays are shared
        model.config = dataclasses.replace(
            model.config, rope_scaling_factor=rotary_scaling_factor
        )
    return {
        length: embedder.replaced(
            model=model, config=dataclasses.replace(embedder.config, max_length=length)
        )
        for length in lengths
    }


def with_all_prompts(embedder: Embedder) -> Embedder:
    """Return an embedder that knows the prompts of all tasks, as `completed` has them.

    A model that has no prompt for a task embeds its texts as they stand.
    """
    prompts = embedder.config.prompts
    if prompts.keys() >= (every := completed(prompts)).keys():
        return embedder
    missing = [name for name in NOMIC_PROMPTS if name not in prompts]
    if missing:
        names = ", ".join(missing)
        logger.warning("the model has no prompt for %s: see the prefixes", names)
    return embedder.replaced(config=dataclasses.replace(embedder.config, prompts=every))
