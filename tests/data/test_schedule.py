import dataclasses
import itertools
import math
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from nomic_jax.data import schedule as module
from nomic_jax.data.schedule import BLOCK, Sampling, Schedule

SIZES = {"code": 37, "titles": 12, "forum": 20}
WEIGHTS = (("titles", 1.0), ("code", 0.25), ("forum", 2.0))
POLICIES = {
    "proportional": Sampling(),
    "temperature": Sampling(policy="temperature", exponent=0.5),
    "weights": Sampling(policy="weights", weights=WEIGHTS),
    "round_robin": Sampling(policy="round_robin"),
}
every_policy = pytest.mark.parametrize("policy", POLICIES)


def plan(policy="proportional", seed=0, batch_size=5, **sizes):
    return Schedule.over(
        sizes or SIZES, batch_size=batch_size, seed=seed, sampling=POLICIES[policy]
    )


def walk(schedule, steps):
    return [(name, records.tolist()) for name, records in map(schedule.at, steps)]


def sources(schedule, steps):
    return [schedule.place(step).source for step in range(steps)]


@every_policy
@pytest.mark.parametrize("seed", range(2))
def test_a_step_after_a_jump_has_the_batch_it_has_in_a_walk(policy, seed):
    steps = range(BLOCK - 20, BLOCK + 30)
    walked = walk(plan(policy, seed), steps)
    for index in (31, 0, 17, 49):
        module._order.cache_clear()
        fresh = pickle.loads(pickle.dumps(plan(policy, seed)))
        assert walk(fresh, [steps[index]]) == [walked[index]]
    assert walk(plan(policy, seed), reversed(steps)) == walked[::-1]


@every_policy
@pytest.mark.parametrize("seed", range(3))
def test_a_source_repeats_no_record_before_its_epoch_ends(policy, seed):
    schedule = plan(policy, seed)
    read = {name: [] for name in SIZES}
    for name, records in walk(schedule, range(300)):
        assert len(records) == 5
        read[name].append(records)
    for name, size in SIZES.items():
        whole = size // 5
        # In the order of time, whatever the source's own count of epochs says.
        epochs = [read[name][i : i + whole] for i in range(0, len(read[name]), whole)]
        assert len(epochs) > 2
        for epoch in epochs:
            records = list(itertools.chain(*epoch))
            assert len(set(records)) == len(records)
            assert 0 <= min(records) and max(records) < size
        # Only what fills no batch is dropped.
        assert all(len(epoch) == whole for epoch in epochs[:-1])


@every_policy
def test_places_count_the_batches_of_each_source(policy):
    schedule = plan(policy)
    steps = 14 * schedule.steps_per_epoch
    found = {name: [] for name in SIZES}
    for step in range(steps):
        name, epoch, batch = schedule.place(step)
        found[name].append(epoch * (SIZES[name] // 5) + batch)
    for numbers in found.values():
        assert sorted(numbers) == list(range(len(numbers)))
        if policy != "proportional":  # there batches of an epoch come in any order
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("seed", range(3))
def test_in_proportion_an_epoch_goes_through_every_source_once(seed):
    schedule = plan(seed=seed)
    assert schedule.steps_per_epoch == 37 // 5 + 12 // 5 + 20 // 5
    names = sources(schedule, 4 * schedule.steps_per_epoch)
    for epoch in range(4):
        first = epoch * schedule.steps_per_epoch
        given = Counter(names[first : first + schedule.steps_per_epoch])
        assert given == {name: size // 5 for name, size in SIZES.items()}


@pytest.mark.parametrize("blocks", [1, 3, 7])
@pytest.mark.parametrize("policy", ["temperature", "weights"])
def test_sources_get_their_share_to_the_last_batch(policy, blocks):
    schedule = plan(policy)
    given = Counter(sources(schedule, blocks * BLOCK))
    shares = {name: size**0.5 for name, size in SIZES.items()}
    if policy == "weights":
        shares = dict(WEIGHTS)
    for name, share in shares.items():
        expected = blocks * BLOCK * share / sum(shares.values())
        assert abs(given[name] - expected) < 1


def test_an_exponent_of_zero_makes_sources_equal_and_of_one_proportional():
    for exponent, share in ((0.0, 0.5), (1.0, 0.1)):
        sampling = Sampling(policy="temperature", exponent=exponent)
        schedule = Schedule.over(
            {"a": 10, "b": 90}, batch_size=10, seed=0, sampling=sampling
        )
        given = Counter(sources(schedule, BLOCK))
        assert abs(given["a"] - share * BLOCK) < 1


@pytest.mark.parametrize("share", [1e-3, 1e-6])
def test_a_source_with_a_small_share_gets_it_however_small(share):
    sampling = Sampling(policy="weights", weights=(("a", 1.0), ("b", share)))
    schedule = Schedule.over({"a": 9, "b": 9}, batch_size=9, seed=0, sampling=sampling)
    for times in (1, 5):
        blocks = math.ceil(times / share / BLOCK) + 1
        given = schedule._given(blocks)
        batches = given[2] - given[1]
        assert abs(batches - blocks * BLOCK * share / (1 + share)) < 1
        assert batches >= times


def test_a_source_of_weight_zero_is_never_read_and_may_be_small():
    sampling = Sampling(policy="weights", weights=(("a", 1.0), ("b", 0.0)))
    schedule = Schedule.over({"a": 9, "b": 2}, batch_size=9, seed=0, sampling=sampling)
    assert set(sources(schedule, BLOCK)) == {"a"}


def test_round_robin_takes_sources_in_the_order_given():
    assert sources(plan("round_robin"), 7) == [*SIZES, *SIZES, "code"]


@every_policy
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_rows_of_all_hosts_make_up_the_batch(policy, hosts):
    schedule = plan(policy, batch_size=8)
    share = 8 // hosts
    for step in range(6):
        name, records = schedule.at(step)
        parts = [schedule.at(step, slice(i, i + share)) for i in range(0, 8, share)]
        assert {part for part, _ in parts} == {name}
        np.testing.assert_array_equal(np.concatenate([r for _, r in parts]), records)


@every_policy
def test_epochs_and_seeds_differ_in_records(policy):
    def first_epochs(seed):
        read = {name: [] for name in SIZES}
        for name, records in walk(plan(policy, seed), range(100)):
            read[name] += records
        return {
            name: (read[name][: size // 5 * 5], read[name][size // 5 * 5 :][:size])
            for name, size in SIZES.items()
        }

    one, other = first_epochs(0), first_epochs(1)
    for name in SIZES:
        assert one[name][0] != one[name][1][: len(one[name][0])]
        assert one[name] != other[name]


def test_epochs_and_seeds_differ_in_the_order_of_sources():
    names = sources(plan(), 2 * plan().steps_per_epoch)
    half = len(names) // 2
    assert names[:half] != names[half:]
    assert names[:half] != sources(plan(seed=1), half)


def test_another_source_does_not_move_the_records_of_the_rest():
    def batches(schedule):
        read = walk(schedule, range(schedule.steps_per_epoch))
        return sorted(tuple(records) for name, records in read if name == "code")

    assert batches(plan()) == batches(plan(news=50, **SIZES))


def test_what_fills_no_batch_is_left_out_in_turn():
    schedule = plan(code=9)  # 4 of 9 records are left out of an epoch's one batch
    read = {record for step in range(30) for record in schedule.at(step)[1]}
    assert read == set(range(9))


def test_sources_of_equal_size_are_ordered_apart():
    schedule = plan(batch_size=40, a=40, b=40)
    (_, first), (_, second) = schedule.at(0), schedule.at(1)
    assert first.tolist() != second.tolist()


@every_policy
def test_a_billion_records_take_no_table(policy):
    # Sizes and weights apart by a factor of a million.
    sizes = {name: 10 ** (9 - 3 * i) + i for i, name in enumerate(SIZES)}
    schedule = plan(policy, batch_size=512, **sizes)
    tracemalloc.start()
    for step in (0, 10**9, 12345):
        schedule.at(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**19  # a few arrays of 512 and 1,024; bytes a record would be 1 GB


def test_sources_that_fill_no_batch_are_all_named():
    with pytest.raises(ValueError, match="a batch takes 13 .* titles has 12; use a"):
        plan(batch_size=13)
    with pytest.raises(ValueError, match="code has 4, titles has 3; use a"):
        plan(code=4, titles=3, forum=20)
    with pytest.raises(ValueError, match="there is no source"):
        Schedule.over({}, batch_size=5, seed=0)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        plan(batch_size=0)
    with pytest.raises(ValueError, match="step=-1 must be 0 or more"):
        plan().at(-1)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            (("coed", 1.0), *WEIGHTS),
            "'coed', which is not a source: did you mean 'code'",
        ),
        (WEIGHTS[:2], "'forum' has no weight; give it one, 0 to leave it out"),
        ((*WEIGHTS[:2], ("forum", -1.0)), "0 or more, and finite: forum=-1.0"),
        ((*WEIGHTS[:2], ("forum", float("nan"))), "finite: forum=nan"),
        ([(name, 0.0) for name in SIZES], "all sampling weights are 0"),
        ((), "'weights' with 0 weights"),
    ],
)
def test_weights_that_are_no_shares_of_the_sources_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        sampling = Sampling(policy="weights", weights=tuple(weights))
        Schedule.over(SIZES, batch_size=5, seed=0, sampling=sampling)


def test_weights_and_exponents_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="'proportional' with 3 weights"):
        Sampling(weights=WEIGHTS)
    for exponent in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"exponent={exponent} must be"):
            Sampling(policy="temperature", exponent=exponent)


def test_a_schedule_is_a_value():
    assert plan() == dataclasses.replace(plan()) and hash(plan()) == hash(plan())
    assert plan().at(3)[1].dtype == np.int64
