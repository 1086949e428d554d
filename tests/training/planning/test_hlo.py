"""What is read of a compiled program's text, on CPU and in a TPU's way of printing."""

import jax
import jax.numpy as jnp
import pytest

from nomic_jax.training.planning.compile import memory_traffic
from nomic_jax.training.planning.hlo import read_arrays, read_program

# A loop of 3 around a loop of 5, as a TPU's compiler prints them.
NESTED = """\
HloModule jit_step, is_scheduled=true

%inner_end (p.0: (s32[], f32[8])) -> pred[] {
  %c.0 = s32[]{:T(128)} constant(5)
  %p.0 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt.0 = pred[]{:T(512)} compare(%i.0, %c.0), direction=LT
}

%inner (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %x.1 = f32[8]{0:T(128)} get-tuple-element(%p.1), index=1
  %near.1 = f32[8]{0:T(128)S(1)} copy(%x.1)
  %y.1 = f32[8]{0:T(128)} add(%near.1, %x.1)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %t.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%i.1, %y.1)
}

%outer_end (p.2: (s32[], f32[8])) -> pred[] {
  %c.2 = s32[]{:T(128)} constant(3)
  %p.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.2, %c.2), direction=LT
}

%outer (p.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  ROOT %w.3 = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(128)}) while(%p.3), BODY
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%zero, %a)
  %w = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%t), condition=%outer_end, body=%outer
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%w), index=1
}
""".replace("BODY", "condition=%inner_end, body=%inner")


def test_a_shape_says_its_bytes_and_its_memory():
    (array,) = read_arrays("bf16[4,2048,768]{2,1,0:T(8,128)(2,1)S(1)}")
    assert (array.bytes, array.in_memory, str(array)) == (
        4 * 2048 * 768 * 2,
        False,
        "bf16[4,2048,768]",
    )
    first, second = read_arrays("(pred[3], f32[])")
    assert (first.bytes, second.bytes) == (3, 4)
    assert first.in_memory and second.in_memory


def test_the_body_of_a_loop_in_a_loop_runs_as_often_as_both_say():
    runs = read_program(NESTED).runs(through_fusions=True)
    assert {name: where.times for name, where in runs.items()} == {
        "main": 1,
        "outer": 3,
        "inner": 15,
    }
    assert runs["inner"].in_loop and not runs["main"].in_loop


def test_a_memory_close_to_the_units_costs_nothing():
    # 15 times: the copy reads 32 bytes of memory, the sum reads 32 and writes 32.
    assert memory_traffic(read_program(NESTED)) == 15 * 96


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("HloModule nothing")


def compiled(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile()


def test_without_a_loop_the_traffic_is_that_of_the_compilers_own_analysis():
    program = compiled(lambda x, w: jnp.tanh(x @ w) @ w.T + x, (128, 256), (256, 256))
    expected = program.cost_analysis()["bytes accessed"]
    assert memory_traffic(read_program(program.as_text())) == expected


def test_a_loop_moves_what_its_unrolled_form_does():
    def scanned(x, w):
        return jax.lax.scan(lambda x, each: (jnp.tanh(x @ each), None), x, w)[0]

    def unrolled(x, w):
        for each in w:
            x = jnp.tanh(x @ each)
        return x

    shapes = (128, 256), (8, 256, 256)
    loop, whole = compiled(scanned, *shapes), compiled(unrolled, *shapes)
    expected = whole.cost_analysis()["bytes accessed"]
    # The loop copies what it carries when it begins.
    assert memory_traffic(read_program(loop.as_text())) == pytest.approx(
        expected, rel=0.05
    )
    assert loop.cost_analysis()["bytes accessed"] < expected / 5
