"""Products counted in a compiled program, next to XLA's own analysis and the traced."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nomic_jax.training.planning.compile import (
    compiled_flops,
    convolution_flops,
    memory_traffic,
)
from nomic_jax.training.planning.flops import product_flops
from nomic_jax.training.planning.hlo import read_program


def traced(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*arrays)


def test_products_in_loops_count_as_often_as_they_run():
    def step(x, w):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.grad(lambda x, w: lax.scan(layer, x, w)[0].sum(), (0, 1))(x, w)

    program = traced(step, (16, 32), (5, 32, 32))
    compiled = read_program(program.lower().compile().as_text())
    expected = 3 * 5 * 2 * 16 * 32 * 32
    assert compiled_flops(compiled) == product_flops(program.jaxpr.jaxpr) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window_strides": (2, 3), "padding": ((1, 2), (0, 1))},
        {"lhs_dilation": (2, 1), "padding": ((3, 3), (2, 2))},
        {"rhs_dilation": (1, 2), "padding": ((0, 4), (1, 0))},
    ],
)
def test_a_convolution_counts_as_in_xlas_own_analysis(settings):
    settings = {"window_strides": (1, 1), "padding": "VALID"} | settings

    def convolved(x, w):
        return lax.conv_general_dilated(x, w, **settings)

    program = traced(convolved, (2, 3, 8, 9), (4, 3, 3, 2)).lower()
    text = program.as_text(dialect="hlo")
    (line,) = [line for line in text.splitlines() if "convolution(" in line]
    result = program.out_info.shape
    found = convolution_flops(line, (2, 3, 8, 9), (4, 3, 3, 2), result)
    assert found == program.cost_analysis()["flops"] > 0


# A batch of 3 products of 4 x 5 and 5 x 6, as a TPU's compiler writes it; and kernels.
TPU = """\
HloModule jit_step

ENTRY %main (a: f32[3,4,5], b: f32[3,5,6]) -> f32[3,4,6] {
  %a = f32[3,4,5]{2,1,0} parameter(0)
  %b = f32[3,5,6]{2,1,0} parameter(1)
  %k = (f32[2,512,128]{2,1,0}, f32[2,512,128]{2,1,0}, f32[2,512,64]{2,1,0}, \
bf16[2,4,1024,64]{3,2,1,0}, f32[2,4,1024,128]{3,2,1,0}) custom-call(%a), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"said": "over several lines"
}}, metadata={op_name="jit(step)/jit(NAME)/pallas_call"}
  ROOT %c = f32[3,4,6]{2,1,0} convolution(%a, %b), \
window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batch_of_products_and_a_kernel_are_counted():
    batch, attention = 2 * 3 * 4 * 5 * 6, 2 * 2 * 2 * 4 * 64 * 1024**2
    program = read_program(TPU.replace("NAME", "splash_forward_all"))
    assert compiled_flops(program) == batch + attention


def test_a_kernel_that_says_nothing_of_itself_is_not_counted():
    assert compiled_flops(read_program(TPU.replace("NAME", "ragged_dot"))) is None


@pytest.mark.parametrize(("rows", "queries"), [(2, "bf16[2,4,"), (1, "bf16[4,")])
def test_a_kernel_reads_keys_and_values_again_for_each_tile_of_queries(rows, queries):
    # The compiler drops the axis of rows where there is one.
    tpu = TPU.replace("bf16[2,4,1024,64]{3,2,1,0}", queries + "1024,64]")
    text = tpu.replace("NAME", "splash_forward_all")
    plain = memory_traffic(read_program(tpu.replace("NAME", "another")))
    # Two tiles of 512 queries: all keys and values once more; and ids of segments, four
    # bytes 128 times side by side, for three more heads.
    again = rows * 4 * 1024 * 64 * 2 * 2 + rows * 3 * 1024 * 128 * 4
    assert memory_traffic(read_program(text)) == plain + again
