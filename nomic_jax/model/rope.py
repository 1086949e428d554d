"""Rotary positions in NeoX halves, and Dynamic NTK beyond the trained length.

Su et al. 2021 (arXiv:2104.09864): channel pairs (i, i + K/2) of queries and keys turn
by `position / base**(2i/K)`. Dynamic NTK keeps the base for texts of up to `L` trained
tokens; a longer text of `n` tokens gets `base * (alpha*n/L - (alpha-1))**(K/(K-2))`
(Nomic Embed, arXiv:2402.01613, section 3.2).
"""

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from nomic_jax.batch import positions_and_lengths
from nomic_jax.config import ModelConfig

# Cosines and sines by which each token rotary, each [B S half].
RotaryTable: TypeAlias = tuple[Float32[Array, "B S half"], Float32[Array, "B S half"]]


def inverse_frequencies(
    config: ModelConfig, max_length: int, *, local: bool = False
) -> Float32[np.ndarray, "lengths half"]:
    """Tabulate the angle per position of each channel pair, by length of the text.

    Row 0 serves texts of up to `trained_positions` tokens, row `i` a text of
    `trained_positions + i`. Made on the host, it is the same on every accelerator.
    Each step is rounded to float32 as in PyTorch, with which the published models were
    trained: a last place here moves the hidden states of token 2,000 by 4e-4.
    Local layers have a base of their own, which no length stretches: what they look at
    is never far.
    """
    base = config.local_rope_base if local else config.rope_base
    assert base is not None, "absolute positions do not turn"
    width, trained = config.head_width, config.trained_positions
    single, double = np.float32, np.float64
    bases = np.full(1, base, single)
    stretched = config.rope_scaling_factor is not None and not local
    if stretched and max_length > trained:
        alpha = single(config.rope_scaling_factor)
        lengths = np.arange(trained, max_length + 1, dtype=single)
        stretch = alpha * lengths / single(trained) - (alpha - single(1))
        # Powers in float64, then rounded: NumPy's float32 power varies by processor.
        bases = bases * (stretch.astype(double) ** (width / (width - 2))).astype(single)
    exponents = (np.arange(0, width, 2, dtype=single) / single(width)).astype(double)
    return single(1) / (bases.astype(double)[:, None] ** exponents).astype(single)


def rotary_table(
    config: ModelConfig, segment_ids: Int[Array, "B S"], *, local: bool = False
) -> RotaryTable:
    """Return the cosines and sines by which each token's query and key turn.

    They depend on the token's place in its own text and on that text's own length;
    never on padding, on neighbours in a packed row, or on an earlier call. Those of
    local layers have the base of local layers.
    """
    positions, lengths = positions_and_lengths(segment_ids)
    columns = segment_ids.shape[1]
    table = jnp.asarray(inverse_frequencies(config, columns, local=local))
    if len(table) == 1:
        frequencies = table[None]
    else:
        frequencies = table[jnp.maximum(lengths - config.trained_positions, 0)]
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S *heads K"],
    cos: Float32[Array, "B S half"],
    sin: Float32[Array, "B S half"],
) -> Float[Array, "B S *heads K"]:
    """Turn the channel pairs (i, i + K/2) of every head; float32 inside."""
    axes = tuple(range(2, x.ndim - 1))
    cos, sin = jnp.expand_dims(cos, axes), jnp.expand_dims(sin, axes)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)


def check_length(config: ModelConfig, length: int) -> None:
    """Refuse rows beyond the trained positions, unless these can be stretched.

    Raises:
        ValueError: with both numbers, and what stretches rotary positions.
    """
    if length <= config.trained_positions:
        return
    if config.rope_base is None:
        raise ValueError(
            f"rows of {length} tokens exceed the {config.trained_positions} absolute "
            "positions of the model; cut them"
        )
    if config.rope_scaling_factor is None:
        raise ValueError(
            f"rows of {length} tokens exceed the {config.trained_positions} the model "
            "was trained on; cut them, or set rope_scaling_factor (2.0 is the "
            "published choice) to stretch its rotary positions"
        )
