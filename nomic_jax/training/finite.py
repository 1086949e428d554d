"""Steps that came out as no numbers: left out on the device, counted on the host.

One overflow must not end a run of days, and many in a row must not go on for days.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

Tree = TypeVar("Tree")


def keep_if_finite(
    old: Tree, new: Tree, *, loss: Float[Array, ""], gradient_norm: Float[Array, ""]
) -> tuple[Tree, Float32[Array, ""]]:
    """Take the new arrays if loss and gradient are finite, else leave the old ones.

    The choice is elementwise and joins the optimizer's own pass over the arrays; no
    value has to reach the host.

    Args:
        old: parameters and optimizer state before the step.
        new: the same after it, of the same structure.
        loss: of the step.
        gradient_norm: global, before clipping; not finite if any element is not.

    Returns:
        What stands after the step, and 1.0 where the step was skipped, else 0.0.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    kept = jax.tree.map(
        lambda before, after: jnp.where(finite, after, before), old, new
    )
    return kept, 1 - finite.astype(jnp.float32)


class SkipLimit:
    """Ends a run after a number of skipped steps in a row."""

    def __init__(self, limit: int):
        """Allow fewer than `limit` skipped steps in a row."""
        self.limit = limit
        self.in_a_row = 0

    def check(self, step: int, values: Any) -> None:
        """Count one step's metrics, read from the device, in the order of the steps.

        Raises:
            FloatingPointError: as many steps in a row as the limit were skipped.
        """
        self.in_a_row = self.in_a_row + 1 if values.get("skipped", 0) else 0
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"loss {float(values['loss'])} and gradient norm "
                f"{float(values['gradient_norm'])} at step {step}: the last "
                f"{self.in_a_row} steps were skipped, which is max_skipped_steps; the "
                "last checkpoint is kept; lower the learning rate or set clip_norm, or "
                "look at the data of these steps"
            )
