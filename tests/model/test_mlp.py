import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nomic_jax.model.layers import Mlp


def test_the_silu_is_on_the_gate_alone(tiny_config):
    layer = Mlp(tiny_config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    up, gate, down = (
        np.asarray(linear.kernel.get_value(), np.float64)
        for linear in (layer.up, layer.gate, layer.down)
    )
    inputs = jax.random.normal(jax.random.key(0), (3, 5, 32))
    x = np.asarray(inputs, np.float64)
    gated = x @ gate
    expected = ((x @ up) * gated / (1 + np.exp(-gated))) @ down
    # float32 sums of 64 terms of unit scale.
    np.testing.assert_allclose(layer(inputs), expected, atol=2e-5)
    assert len(jax.tree.leaves(layer)) == 3  # no biases
