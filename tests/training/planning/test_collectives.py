import pytest

from nomic_jax.training.planning.compile import find_collectives, group_size, summed
from nomic_jax.training.planning.hlo import read_program

# A reduction after a loop, one in it, a gather that goes on next to the loop, and a
# reduction of which each device keeps a slice.
PROGRAM = """\
HloModule jit_step

%sum (x.0: f32[], y.0: f32[]) -> f32[] {
  %x.0 = f32[] parameter(0)
  %y.0 = f32[] parameter(1)
  ROOT %s.0 = f32[] add(%x.0, %y.0)
}

%begins (p.1: f32[2]) -> f32[8] {
  %p.1 = f32[2]{0} parameter(0)
  ROOT %g.1 = f32[8]{0} all-gather(%p.1), channel_id=8, ALL, CHAIN
}

%goes_on (p.2: f32[2]) -> f32[8] {
  %p.2 = f32[2]{0} parameter(0)
  ROOT %g.2 = f32[8]{0} all-gather(%p.2), channel_id=8, ALL, CHAIN
}

%scattered (p.3: f32[8]) -> f32[2] {
  %p.3 = f32[8]{0} parameter(0)
  %r.3 = f32[8]{0} all-reduce(%p.3), channel_id=3, ALL, SUM
  %at.3 = s32[] constant(0)
  ROOT %d.3 = f32[2]{0} dynamic-slice(%r.3, %at.3), dynamic_slice_sizes={2}
}

%end (p.4: (s32[], f32[2])) -> pred[] {
  %n.4 = s32[] constant(6)
  %p.4 = (s32[], f32[2]{0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  ROOT %lt.4 = pred[] compare(%i.4, %n.4), direction=LT
}

%body (p.5: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p.5 = (s32[], f32[2]{0}) parameter(0)
  %i.5 = s32[] get-tuple-element(%p.5), index=0
  %x.5 = f32[2]{0} get-tuple-element(%p.5), index=1
  %f.5 = f32[8]{0} fusion(%x.5), calls=%goes_on
  %r.5 = f32[2]{0} all-reduce(%x.5), channel_id=1, replica_groups=[2,2]<=[4], SUM
  ROOT %t.5 = (s32[], f32[2]{0}) tuple(%i.5, %r.5)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %zero = s32[] constant(0)
  %f.6 = f32[8]{0} fusion(%a), calls=%begins
  %t.6 = (s32[], f32[2]{0}) tuple(%zero, %a)
  %w.6 = (s32[], f32[2]{0}) while(%t.6), condition=%end, body=%body
  %x.6 = f32[2]{0} get-tuple-element(%w.6), index=1
  %kept.6 = f32[2]{0} fusion(%f.6), kind=kOutput, calls=%scattered
  ROOT %r.6 = f32[2]{0} all-reduce(%x.6), channel_id=1, ALL, SUM
}
"""
SHORT = {
    "ALL": "replica_groups={{0,1,2,3}}",
    "SUM": "to_apply=%sum",
    "CHAIN": 'frontend_attributes={chain_id="0"}',
}


@pytest.fixture(scope="module")
def collectives():
    text = PROGRAM
    for short, whole in SHORT.items():
        text = text.replace(short, whole)
    return find_collectives(read_program(text), devices=4)


def test_each_collective_is_found_once_with_how_often_it_runs(collectives):
    found = {(c.kind, c.group, c.times, c.in_loop, c.bytes) for c in collectives}
    assert found == {
        ("all-gather", 4, 1, False, 32),  # it only goes on next to the loop
        ("reduce-scatter", 4, 1, False, 8),
        ("all-reduce", 2, 6, True, 8),
        ("all-reduce", 4, 1, False, 8),
    }
    assert len(collectives) == 4


def test_what_leaves_a_device_is_that_of_a_ring(collectives):
    sent = {(c.kind, c.group): c.sent for c in collectives}
    assert sent == {
        ("all-gather", 4): 24,  # three quarters of 32 bytes
        ("reduce-scatter", 4): 24,  # three times the 8 bytes that stay
        ("all-reduce", 2): 48,  # six times 8 bytes
        ("all-reduce", 4): 12,
    }


def test_collectives_of_a_kind_and_place_are_put_together(collectives):
    double = summed([*collectives, *collectives])
    assert [count for _, count in double] == [2, 2, 2, 2]
    assert [each.sent for each, _ in double] == [96, 48, 48, 24]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[4,8]<=[32]", 8),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['a'=16,'b'=4] {'a','b'}", 64),
        ("channel_id=1", 12),
    ],
)
def test_the_devices_of_a_group_are_counted_in_every_notation(text, size):
    assert group_size(text, 12) == size
