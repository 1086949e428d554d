import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from nomic_jax.model.grouped_matmul import CPU, CPU_BLOCK, TPU, grouped_product


@pytest.mark.parametrize("kernel", [CPU, TPU, None])
@pytest.mark.parametrize(
    "sizes",
    [
        (3, 0, 2, 1),
        (0, 2 * CPU_BLOCK + 5, CPU_BLOCK, 0),  # several blocks, a whole one, none
    ],
)
def test_each_row_meets_the_matrix_of_its_group(kernel, sizes):
    random = np.random.default_rng(0)
    rows = random.standard_normal((sum(sizes), 3))
    matrices = random.standard_normal((4, 3, 5))
    upstream = random.standard_normal((sum(sizes), 5))
    group = np.repeat(np.arange(4), sizes)
    expected = np.einsum("na,nab->nb", rows, matrices[group])
    of_rows = np.einsum("nb,nab->na", upstream, matrices[group])
    of_matrices = np.stack(
        [rows[group == each].T @ upstream[group == each] for each in range(4)]
    )

    @jax.jit
    def values_and_gradients(rows, matrices, upstream):
        out, pull = jax.vjp(
            lambda *both: grouped_product(*both, jnp.array(sizes), kernel=kernel),
            rows,
            matrices,
        )
        return out, *pull(upstream)

    found = values_and_gradients(
        *(jnp.asarray(each, jnp.float32) for each in (rows, matrices, upstream))
    )
    for one, exact in zip(found, (expected, of_rows, of_matrices), strict=True):
        # float32 sums of up to 260 terms of unit scale.
        np.testing.assert_allclose(one, exact, atol=2e-5)


@pytest.mark.parametrize("kernel", [CPU, TPU, None])
def test_it_is_traced_where_devices_hold_rows_of_their_own(kernel):
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")

    def loss(rows, matrices, sizes):
        def local(rows, matrices, sizes):
            matrices = jax.lax.pcast(matrices, ("data",), to="varying")
            return grouped_product(rows, matrices, sizes[0], kernel=kernel)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(split, PartitionSpec(), split),
            out_specs=split,
        )(rows, matrices, sizes).sum()

    rows, matrices = jnp.ones((6, 3)), jnp.ones((4, 3, 5))
    sizes = jnp.array([[3, 0, 0, 0], [1, 0, 1, 1]])
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(rows, matrices, sizes)
    shapes = [out.shape for out in program.out_avals]
    assert shapes == [rows.shape, matrices.shape]
