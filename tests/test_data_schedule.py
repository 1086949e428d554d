import numpy as np
import pytest

from nomic_jax.data import schedule as module
from nomic_jax.data.schedule import Schedule

SIZES = {"code": 37, "titles": 12, "forum": 20}


def plan(seed=0, **sizes):
    return Schedule.over(sizes or SIZES, batch_size=5, seed=seed)


def walk(schedule, steps):
    return [(name, records.tolist()) for name, records in map(schedule.at, steps)]


@pytest.mark.parametrize("seed", range(3))
def test_a_step_after_a_jump_has_the_batch_it_has_in_a_walk(seed):
    steps = list(range(4 * plan(seed).steps_per_epoch))
    walked = walk(plan(seed), steps)
    module._batch_order.cache_clear()
    module._record_order.cache_clear()
    assert walk(plan(seed), reversed(steps)) == walked[::-1]
    for step in (31, 0, 17):
        module._batch_order.cache_clear()
        module._record_order.cache_clear()
        assert walk(plan(seed), [step]) == [walked[step]]


def test_an_interleaved_schedule_changes_nothing():
    alone = walk(plan(), range(20))
    other = plan(seed=1, code=37, titles=12)
    mixed = []
    for step in range(20):
        other.at(step)
        mixed += walk(plan(), [step])
    assert mixed == alone


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_reads_each_record_at_most_once_and_fills_whole_batches(seed):
    schedule = plan(seed)
    assert schedule.steps_per_epoch == 37 // 5 + 12 // 5 + 20 // 5
    for epoch in range(3):
        first = epoch * schedule.steps_per_epoch
        read = {name: [] for name in SIZES}
        for name, records in walk(
            schedule, range(first, first + schedule.steps_per_epoch)
        ):
            assert len(records) == 5
            read[name] += records
        for name, size in SIZES.items():
            assert len(read[name]) == size // 5 * 5
            assert len(set(read[name])) == len(read[name])
            assert 0 <= min(read[name]) and max(read[name]) < size


def test_epochs_and_seeds_differ_in_records_and_in_order_of_sources():
    schedule = plan()
    steps = range(schedule.steps_per_epoch)
    epochs = [
        walk(schedule, steps),
        walk(schedule, [step + len(steps) for step in steps]),
        walk(plan(seed=1), steps),
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert [name for name, _ in epochs[a]] != [name for name, _ in epochs[b]]
        records = [
            {name: [r for n, r in epoch if n == name] for name in SIZES}
            for epoch in (epochs[a], epochs[b])
        ]
        assert all(records[0][name] != records[1][name] for name in SIZES)


def test_what_fills_no_batch_is_left_out_in_turn():
    schedule = plan(code=9)  # 4 of 9 records are left out of an epoch's one batch
    read = {record for step in range(30) for record in schedule.at(step)[1]}
    assert read == set(range(9))


def test_sources_of_equal_size_are_ordered_apart():
    schedule = Schedule.over({"a": 40, "b": 40}, batch_size=40, seed=0)
    (_, first), (_, second) = schedule.at(0), schedule.at(1)
    assert first.tolist() != second.tolist()


def test_a_caller_cannot_write_into_what_is_remembered():
    with pytest.raises(ValueError, match="read-only"):
        plan().at(0)[1][0] = 7


def test_a_source_smaller_than_a_batch_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="a batch takes 5 .* titles has 4; use a"):
        plan(code=37, titles=4)
    with pytest.raises(ValueError, match="there is no source"):
        Schedule.over({}, batch_size=5, seed=0)


def test_record_numbers_are_whole_numbers():
    assert plan().at(3)[1].dtype == np.int64
