import dataclasses

import jax
import pytest
from plan_stages import MLM

from nomic_jax.training.planning.abstract import Assumptions, abstract_step
from nomic_jax.training.planning.compile import (
    Collective,
    Compiled,
    DeviceMemory,
    Refusal,
    _refusal,
    compile_step,
    device_bytes,
)
from nomic_jax.training.planning.hlo import read_arrays
from nomic_jax.training.planning.roofline import COLUMNS, Account, block, markdown, row
from nomic_jax.training.planning.topology import CHIPS, GIB, Topology

CHIP = CHIPS["v5e"]


@pytest.fixture(scope="module")
def step():
    return abstract_step(MLM, [], jax.devices()[:1], Assumptions(vocabulary=128))


@pytest.fixture(scope="module")
def compiled(step):
    return compile_step(step, CHIP)


@pytest.mark.slow
def test_a_compiled_step_is_accounted_for(step, compiled):
    size = sum(leaf.size for leaf in jax.tree.leaves(step.state.model))
    assert compiled.memory.parameters == 4 * size == device_bytes(step.state.model)
    # Two moments of each parameter, and three counts.
    assert compiled.memory.optimizer == 8 * size + 12
    assert compiled.memory.temporaries > 0 and compiled.traffic > 0
    assert compiled.flops > step.flops  # of all slots for masked tokens
    assert compiled.collectives == ()


def test_a_step_larger_than_the_chip_is_refused_with_the_sizes(step, compiled):
    refusal = compile_step(step, dataclasses.replace(CHIP, memory=2**23))
    assert isinstance(refusal, Refusal)
    assert f"{compiled.memory.total / GIB:.2f} GiB needed" in refusal.said
    assert "parameters 0.00" in refusal.said and "of 0.01 GiB" in refusal.said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (16.02G) exceeds available HBM (15.75G).",
            "16.02 GiB needed for temporaries of 15.75 GiB of HBM",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
            "memory space hbm. Used 900.5M of 1.5G hbm. Exceeded hbm capacity by 3M.",
            "900.5 MiB needed for all of 1.5 GiB of HBM",
        ),
    ],
)
def test_a_compilers_refusal_is_read(message, said):
    assert _refusal(message) == Refusal(said)


def test_another_fault_of_the_compiler_is_no_refusal():
    with pytest.raises(ValueError, match="INTERNAL: Mosaic failed"):
        _refusal("INTERNAL: Mosaic failed\nat line 3")
    assert _refusal("RESOURCE_EXHAUSTED: no idea").said.endswith("no idea")


@pytest.fixture
def account(step):
    reduced = Collective("all-reduce", read_arrays("f32[1000000]"), 4, 2, True)
    made = Compiled(
        memory=DeviceMemory(
            parameters=GIB, optimizer=2 * GIB, batch=0, temporaries=4 * GIB, program=0
        ),
        flops=4 * CHIP.peak,  # 1 s on four devices
        traffic=3 * CHIP.memory_bandwidth,
        collectives=(reduced,),
    )
    return Account(step, Topology("v5e:2x2", CHIP, [None] * 4), made)


def test_the_longest_of_three_bounds_a_step(account):
    assert account.bounds == pytest.approx(
        {"arithmetic": 1, "memory": 3, "links": 2 * 6e6 / CHIP.link_bandwidth}
    )
    assert (account.seconds, account.bound_by) == (3, "memory")
    assert account.tokens_per_second == account.step.tokens / 3
    assert account.mfu == pytest.approx(account.step.flops / (4 * CHIP.peak * 3))
    assert account.hours == pytest.approx(3 * 100 / 3600)


def test_a_plan_says_all_of_it(account):
    text = block(account, realistic=0.5)
    for part in (
        "mlm on v5e:2x2 (4 chips), 1 device; tokens_at_once=all, remat=none",
        "rows full, each one text of 64 tokens",
        "parameters 1.00, optimizer 2.00",
        "total 7.00 of 15.75 GiB (44%)",
        "1 all-reduce of 3.8 MiB among 4, 2 times in loops",
        "arithmetic 1 s, memory 3 s, links 60 us: 3 s, bound by memory",
        "5 minutes for 100 steps",
        "at 50% of it           0.167 hours",
    ):
        assert part in text, part
    cells = row(account, realistic=0.5)
    table = markdown([cells]).splitlines()
    assert len(cells) == len(COLUMNS)
    assert len({line.count("|") for line in table}) == 1
    assert "7.00 of 15.75" in table[2]
