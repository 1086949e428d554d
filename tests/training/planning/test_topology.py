import importlib.util

import pytest

from nomic_jax.training.planning.topology import (
    CHIPS,
    GIB,
    open_topology,
    parse_topology,
)


@pytest.mark.parametrize(
    ("name", "sides"),
    [("v5e:4x4", (4, 4)), ("v5p:4x4x4", (4, 4, 4)), ("h100:8", (8,))],
)
def test_a_topology_is_a_chip_and_its_sides(name, sides):
    assert parse_topology(name) == (CHIPS[name.partition(":")[0]], sides)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5a:4x4", "no chip is named 'v5a'; did you mean 'v5"),
        ("4x4", "no chip is named '4x4'; known: a100"),
        ("v5e", "give the sides of the slice, as in v5e:4x4"),
        ("v5e:16", "give the sides"),
        ("v5p:0x4x4", "give the sides of the slice, as in v5p:4x4x4"),
        ("h100:9", "a host of GPUs is h100:1 to h100:8"),
    ],
)
def test_what_is_no_topology_is_refused(name, said):
    with pytest.raises(ValueError) as caught:
        parse_topology(name)
    assert said in str(caught.value) and name in str(caught.value)


def test_a_missing_compiler_is_named_with_what_brings_it():
    for module, name, extra in (
        ("libtpu", "v5e:4x4", "[tpu]"),
        ("jax_cuda13_plugin", "h100:8", "[gpu]"),
    ):
        if importlib.util.find_spec(module) is None:
            with pytest.raises(ValueError, match="not installed") as caught:
                open_topology(name)
            assert extra in str(caught.value)


def test_every_chip_is_a_plausible_one():
    for chip in CHIPS.values():
        # Bytes of memory a second of bandwidth would take to read, and FLOPs a byte.
        assert 0.01 < chip.memory / chip.memory_bandwidth < 0.06, chip.name
        assert 150 < chip.peak / chip.memory_bandwidth < 600, chip.name
        assert chip.link_bandwidth < chip.memory_bandwidth
        assert chip.memory > 15 * GIB
