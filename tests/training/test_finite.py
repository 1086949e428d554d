import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nomic_jax.training.metrics import SkipLimit
from nomic_jax.training.steps import keep_if_finite


@pytest.mark.parametrize(
    "loss, norm, finite",
    [
        (1.0, 2.0, True),
        (np.nan, 2.0, False),
        (1.0, np.nan, False),
        (np.inf, 2.0, False),
        (1.0, -np.inf, False),
    ],
)
def test_a_step_counts_only_if_loss_and_gradient_are_finite(loss, norm, finite):
    old = {"w": jnp.arange(3.0), "count": jnp.int32(4)}
    # A step that is not finite leaves nothing finite behind.
    new = {"w": jnp.full(3, 7.0 if finite else np.nan), "count": jnp.int32(5)}
    kept, skipped = jax.jit(keep_if_finite)(
        old, new, loss=jnp.float32(loss), gradient_norm=jnp.float32(norm)
    )
    expected = new if finite else old
    np.testing.assert_array_equal(kept["w"], expected["w"])
    assert int(kept["count"]) == int(expected["count"])
    assert kept["count"].dtype == jnp.int32
    assert float(skipped) == (0.0 if finite else 1.0)


def test_only_skipped_steps_in_a_row_end_a_run():
    def values(skipped):
        return {"loss": np.nan, "gradient_norm": 3.0, "skipped": float(skipped)}

    limit = SkipLimit(3)
    for step, skipped in enumerate([1, 1, 0, 1, 1, 0], 1):
        limit.check(step, values(skipped))
    limit.check(7, {"loss": 1.0})  # an update that never skips
    for step in (8, 9):
        limit.check(step, values(1))
    with pytest.raises(FloatingPointError) as caught:
        limit.check(10, values(1))
    for part in ("loss nan", "gradient norm 3.0", "step 10", "last 3 steps"):
        assert part in str(caught.value)
