import dataclasses

import jax
import pytest
from plan_stages import MLM

from nomic_jax.training.placement import MemoryConfig
from nomic_jax.training.planning import budget
from nomic_jax.training.planning.abstract import Assumptions, abstract_step
from nomic_jax.training.planning.budget import candidates, enough_tokens, within_budget
from nomic_jax.training.planning.compile import step_memory
from nomic_jax.training.planning.topology import GIB

ALL = [(None, "none"), (None, "dots"), (None, "full")]
LARGE = [
    *((256, "none"), (128, "none")),
    *((256, "dots"), (128, "dots")),
    *((256, "full"), (128, "full")),
]
SMALL = [(64, "none"), (64, "dots"), (64, "full")]


@pytest.mark.parametrize(
    ("twice", "first"),
    [
        (True, [*ALL, *LARGE]),
        # Microbatches repeat nothing, so layers repeat nothing as long as any fits.
        (
            False,
            [ALL[0], *LARGE[:2], ALL[1], *LARGE[2:4], ALL[2], *LARGE[4:]],
        ),
    ],
)
def test_what_repeats_less_comes_first_and_microbatches_stay_large(twice, first):
    found = list(candidates(8, 64, enough=128, twice=twice))
    assert [(each.tokens_at_once, each.remat) for each in found] == [*first, *SMALL]
    assert all(each.budget is None for each in found)


def step_of(stage):
    assumed = Assumptions(vocabulary=128)
    return abstract_step(stage, [MLM], jax.devices()[:1], assumed)


@pytest.mark.slow
def test_the_first_settings_that_fit_a_budget_are_taken(monkeypatch):
    needed = {}

    def measured(step):
        if step.stage.memory not in needed:
            needed[step.stage.memory] = step_memory(step)
        return needed[step.stage.memory]

    monkeypatch.setattr(budget, "step_memory", measured)
    settings = dataclasses.replace(MLM.train, batch_size=4)
    stage = dataclasses.replace(MLM, train=settings)
    tried = list(candidates(4, 64, enough=128, twice=False))
    totals = [
        measured(step_of(dataclasses.replace(stage, memory=memory))).total
        for memory in tried
    ]
    # A budget that leaves out what comes first, and one that the least alone meets.
    for limit in (max(totals) - 1, min(totals)):
        heard, memory = [], MemoryConfig(budget=limit / GIB)
        found = within_budget(
            dataclasses.replace(stage, memory=memory),
            step_of,
            enough=128,
            say=heard.append,
        )
        first = next(i for i, total in enumerate(totals) if total <= limit)
        assert found == tried[first] and first > 0
        assert len(heard) == first + 1 and "does not fit" in heard[0]


@pytest.mark.slow
def test_a_budget_that_holds_no_step_is_refused_with_the_least_it_takes():
    small = dataclasses.replace(
        MLM,
        memory=MemoryConfig(budget=1e-4),
        train=dataclasses.replace(MLM.train, batch_size=1),
    )
    with pytest.raises(ValueError, match=r"budget=0.0001 GiB holds no step.*needed"):
        within_budget(small, step_of, enough=64, say=lambda text: None)


def test_a_budget_stands_alone():
    for fields in ({"tokens_at_once": 64}, {"remat": "full"}, {}):
        with pytest.raises(ValueError, match="must be above 0, and says what becomes"):
            MemoryConfig(budget=1.0 if fields else 0.0, **fields)
    assert enough_tokens("cpu") < enough_tokens("tpu")
