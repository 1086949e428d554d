"""Rows times the matrix of their group: one product for all experts, none dropped.

    out[i] = rows[i] @ matrices[group of i]                rows sorted by group

The layout of Gale et al. 2022, MegaBlocks (arXiv:2211.15841): groups have
the sizes they have, without padding to the largest. Each platform has a kernel of its
own, for this product and for the sum that is the matrices' gradient.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from nomic_jax.model.layers import PRODUCT

logger = logging.getLogger(__name__)
# Rows a processor multiplies at once. 2,048 tokens through 8 experts of the published
# size, 2 each, took 458 ms in blocks of 128 on 2 cores, 492 in 64, and 456 in 256.
CPU_BLOCK = 128
# More of them for the sums on a TPU, where each block reads and writes a whole matrix,
# and on a GPU, whose many cores one product must fill.
TPU_BLOCK = 512
GPU_BLOCK = 1024
_GROUP_SUMS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(),
)
# What a kernel's functions are called in a traced program; see `plan.arithmetic`.
GROUPED = ("grouped_multiply", "grouped_sums")


class Kernel(NamedTuple):
    """Two functions of arrays whose rows are sorted by group, and the groups' sizes."""

    multiply: Callable  # rows (N A), matrices (groups A B) -> N B
    group_sums: Callable  # rows (N A), rows (N B) -> for each group its sum of A B


def grouped_product(
    rows: Float[Array, "N A"],
    matrices: Float[Array, "groups A B"],
    sizes: Int[Array, "groups"],
    *,
    kernel: Kernel | None = None,
) -> Float[Array, "N B"]:
    """Multiply each row by the matrix of its group.

    Within a `shard_map`, matrices must be marked as varying along the axes that rows
    vary along, as `sharding.over_data` marks the model.

    Args:
        rows: those of the first group first, and so on.
        matrices: in the type of the rows.
        sizes: rows in each group, 0 for none. They sum to N, or to less: what becomes
            of the rows after the last group is then the platform's affair.
        kernel: the platform's own where not given.
    """
    kernel = kernel or platform_kernel()
    named = Kernel(*map(_named, GROUPED, kernel))
    # As of other products with weights, a layer may keep what comes out.
    return checkpoint_name(_product(named, rows, matrices, sizes), PRODUCT)


def _named(name: str, function: Callable) -> Callable:
    """Give a function a name in traced programs, where its loops say nothing."""

    def run(*arrays):
        return function(*arrays)

    run.__name__ = name
    return jax.jit(run)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(kernel, rows, matrices, sizes):
    return kernel.multiply(rows, matrices, sizes)


def _forward(kernel, rows, matrices, sizes):
    return kernel.multiply(rows, matrices, sizes), (rows, matrices, sizes)


def _backward(kernel, kept, cotangent):
    rows, matrices, sizes = kept
    return (
        kernel.multiply(cotangent, jnp.swapaxes(matrices, 1, 2), sizes),
        kernel.group_sums(rows, cotangent, sizes),
        None,
    )


_product.defvjp(_forward, _backward)


def platform_kernel() -> Kernel:
    """Return what each platform does best; the compiler picks the branch.

    Forward, and forward and backward, of 2,048 tokens through 8 experts of the
    published size, 2 each, on 2 cores in float32: 0.46 and 1.59 s in blocks, 1.23 and
    4.50 s with all experts on all tokens. `jax.lax.ragged_dot` is not a kernel on a
    processor or a GPU: XLA lets every matrix meet every row, and at a third of that
    width took 3 times as long as all experts on all tokens. A GPU takes tokamax's
    kernels where they can be imported, and else works in blocks, which it says.
    """
    kernels = {"cpu": CPU, "tpu": TPU}
    if jax.default_backend() == "gpu":
        kernels["cuda"] = _gpu_kernel()

    def choose(name: str) -> Callable:
        functions = {place: getattr(each, name) for place, each in kernels.items()}
        return lambda *arrays: jax.lax.platform_dependent(*arrays, **functions)

    return Kernel(*map(choose, Kernel._fields))


@functools.cache
def _gpu_kernel() -> Kernel:
    try:
        return tokamax_kernel()
    except (ImportError, SyntaxError) as error:
        logger.warning(
            "experts are multiplied in blocks of %d rows; tokamax, whose kernels are "
            "made for this GPU, cannot be imported: %s",
            GPU_BLOCK,
            error,
        )
        return GPU


def tokamax_kernel() -> Kernel:
    """Return tokamax's kernels for NVIDIA GPUs.

    It takes typeguard 2.13.3 alone (0.0.12 still), and under 4 its import fails on a
    syntax; tyro, which reads command lines here, takes 4 and above. So both are not in
    one environment, and what runs from Python alone may have tokamax.

    Raises:
        ImportError, SyntaxError: it is not installed, or its import fails.
    """
    tokamax = importlib.import_module("tokamax")
    # Left to itself it would fall back to what XLA does for `jax.lax.ragged_dot`.
    own = ("mosaic", "triton")

    def multiply(rows, matrices, sizes):
        return tokamax.ragged_dot(rows, matrices, sizes, implementation=own)

    def group_sums(rows, others, sizes):
        return tokamax.ragged_dot_general(
            rows, others, sizes, _GROUP_SUMS, implementation=own
        )

    return Kernel(multiply, group_sums)


def _multiply_blocks(rows, matrices, sizes, *, block):
    """Multiply blocks of rows, each group's from its first row on."""
    padded = jnp.pad(rows, ((0, block), (0, 0)))

    def one_group(out, group):
        matrix, start, size = group

        def one_block(number, out):
            place = start + number * block
            # A group's last block goes on into the next group, which comes after and
            # writes its rows again; that of the last group goes on into the padding.
            product = jax.lax.dynamic_slice_in_dim(padded, place, block) @ matrix
            return jax.lax.dynamic_update_slice_in_dim(out, product, place, axis=0)

        return jax.lax.fori_loop(0, -(-size // block), one_block, out), None

    out = _zeros((len(padded), matrices.shape[2]), rows.dtype, sizes)
    groups = (matrices, jnp.cumsum(sizes) - sizes, sizes)
    return jax.lax.scan(one_group, out, groups)[0][: len(rows)]


def _sum_blocks(rows, others, sizes, *, block):
    """Sum the outer products of rows, a block at a time, in float32."""
    rows, others = (jnp.pad(array, ((0, block), (0, 0))) for array in (rows, others))

    def one_group(_, group):
        start, size = group

        def one_block(number, total):
            place = start + number * block
            left, right = (
                jax.lax.dynamic_slice_in_dim(array, place, block)
                for array in (rows, others)
            )
            own = jnp.arange(block) < size - number * block
            left = jnp.where(own[:, None], left, 0)
            return total + jnp.matmul(left.T, right, preferred_element_type=jnp.float32)

        total = _zeros((rows.shape[1], others.shape[1]), jnp.float32, sizes)
        total = jax.lax.fori_loop(0, -(-size // block), one_block, total)
        return None, total.astype(rows.dtype)

    return jax.lax.scan(one_group, None, (jnp.cumsum(sizes) - sizes, sizes))[1]


def _zeros(shape, dtype, sizes):
    # Within a `shard_map` the state of a loop must be known to differ between devices
    # from the start; it does where the sizes do.
    return jnp.full(shape, (0 * sizes[0]).astype(dtype))


CPU = Kernel(
    functools.partial(_multiply_blocks, block=CPU_BLOCK),
    functools.partial(_sum_blocks, block=CPU_BLOCK),
)
GPU = Kernel(
    functools.partial(_multiply_blocks, block=GPU_BLOCK),
    functools.partial(_sum_blocks, block=GPU_BLOCK),
)
# XLA has a kernel for `ragged_dot` on a TPU and none for the sums: of those it would
# make, for each group, a copy of all rows with the other groups' set to 0.
TPU = Kernel(jax.lax.ragged_dot, functools.partial(_sum_blocks, block=TPU_BLOCK))
