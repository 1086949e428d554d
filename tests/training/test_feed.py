import dataclasses
import os
import time

import numpy as np
import pytest

from nomic_jax.batch import MlmBatch, StepBatch, Tokens
from nomic_jax.training.loop import feed


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Batches that say which step they are of, and which process made them."""

    fails_at: int = -1

    def __call__(self, step):
        if step == self.fails_at:
            raise ValueError(f"record {step} of store 'text' is broken")
        ids = np.full((2, 4), step, np.int32)
        positions = np.zeros((2, 1), np.int32)
        arrays = MlmBatch(
            Tokens(ids, np.ones_like(ids)), positions, positions, positions > 0
        )
        return StepBatch(str(os.getpid()), arrays, num_tokens=8, num_columns=8)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_come_in_the_order_of_the_steps(workers):
    with feed(Numbered(), 3, 14, workers=workers) as batches:
        fed = list(batches)
    assert [step for step, _ in fed] == list(range(3, 14))
    for step, batch in fed:
        assert (batch.arrays.tokens.ids == step).all()
    makers = {batch.source for _, batch in fed}
    assert makers == {str(os.getpid())} if workers == 0 else len(makers) == workers
    assert (str(os.getpid()) in makers) == (workers == 0)


def test_nothing_is_fed_after_the_last_step():
    with feed(Numbered(), 5, 5) as batches:
        assert not list(batches)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_reaches_the_loop_as_it_was_raised(workers):
    with feed(Numbered(fails_at=2), 0, 5, workers=workers) as batches:
        assert next(batches)[0] == 0
        assert next(batches)[0] == 1
        with pytest.raises(ValueError, match="record 2 of store 'text' is broken"):
            next(batches)


@pytest.mark.slow
def test_a_block_left_early_ends_its_processes():
    with feed(Numbered(), 0, 10**6, workers=1) as batches:
        worker = int(next(batches)[1].source)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {worker} still runs")
