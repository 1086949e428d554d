import dataclasses
import functools
import os
import signal
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from stores import write_pair_store, write_row_store

from nomic_jax.config import EmbeddingConfig, ModelConfig
from nomic_jax.data.mlm import Masking, MlmBatches
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.contrastive import BiEncoder, contrastive_objective
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.metrics import read_metrics
from nomic_jax.training.mlm import mlm_objective
from nomic_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    named_arrays,
)
from nomic_jax.training.placement import place_state
from nomic_jax.training.run_checkpoints import Checkpoints
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.steps import TrainState, keep_if_finite, make_update

pytestmark = [pytest.mark.optimized, pytest.mark.slow]

STEPS = 12
CONFIG = LoopConfig(steps=STEPS, batch_size=4, seed=0, log_every=5, save_every=7)
OPTIMIZER = OptimizerConfig(
    learning_rate=0.01, weight_decay=0.1, warmup_steps=3, schedule="linear"
)
SIZES = {
    "vocab_size": 64,
    "type_vocab_size": 2,
    "num_layers": 1,
    "width": 16,
    "num_heads": 2,
    "mlp_width": 32,
    "layer_norm_epsilon": 1e-12,
    "rope_base": 1000.0,
    "trained_positions": 8,
    "dropout": 0.1,
}
TEXT = np.random.default_rng(0).integers(5, 64, size=(23, 8), dtype=np.int32)


class Case:
    """An objective with its data, ready to train from the same start many times."""

    def __init__(self, objective, batch_at, draw):
        self.batch_at = batch_at
        self.optimizer = make_optimizer(OPTIMIZER, STEPS)
        self.update = make_update(
            jax.value_and_grad(objective, has_aux=True),
            self.optimizer,
            seed=CONFIG.seed,
        )
        # However it is drawn, all runs begin with it.
        options = {"xla_backend_optimization_level": 0}
        self.model = jax.jit(draw, compiler_options=options)()

    def train(self, path, *, config=CONFIG, update=None, batch_at=None, **more):
        model = jax.tree.map(jnp.copy, self.model)
        return train(
            "stage",
            place_state(TrainState.fresh(model, self.optimizer), None),
            update or self.update,
            batch_at or self.batch_at,
            config,
            RunFolder.open(path, {}),
            learning_rate=learning_rate(OPTIMIZER, STEPS),
            **more,
        )


SCHEDULE = Schedule.over({"text": len(TEXT)}, batch_size=4, seed=CONFIG.seed)
FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def mlm_batches():
    rows = [[row[:5], row[5:]] for row in TEXT]
    store = write_row_store(f"{FOLDER.name}/rows", "text", rows, row_length=8)
    masking = Masking(
        rate=0.3, mask_id=4, vocab_size=64, special_ids=(0, 1, 2, 3, 4), seed=0
    )
    return MlmBatches({"text": store}, SCHEDULE, masking, row_length=8)


@functools.cache
def pair_batches():
    pairs = [[row[: 3 + i % 3], np.roll(row, 1)] for i, row in enumerate(TEXT)]
    lengths = {"query_length": 8, "document_length": 8}
    store = write_pair_store(f"{FOLDER.name}/pairs", "text", pairs, **lengths)
    return PairBatches({"text": store}, SCHEDULE, pad_id=0, seed=0, **lengths)


@functools.cache
def make_case(name):
    if name == "mlm":
        config = ModelConfig(**SIZES, head="mlm")
        return Case(
            mlm_objective(),
            mlm_batches(),
            lambda: MaskedLanguageModel(config, rngs=nnx.Rngs(0)),
        )
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=8)
    return Case(
        contrastive_objective(embedding, ContrastiveLoss(temperature=0.05)),
        pair_batches(),
        lambda: BiEncoder(NomicBert(ModelConfig(**SIZES), rngs=nnx.Rngs(0)), None),
    )


@pytest.fixture(scope="module", params=["mlm", "contrastive"])
def case(request):
    return make_case(request.param)


@pytest.fixture(scope="module")
def mlm():
    return make_case("mlm")


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    """The state and folder of a run that nothing stopped."""
    path = tmp_path_factory.mktemp("whole")
    return case.train(path), path


def assert_same_state(ours, theirs):
    ours, theirs = named_arrays(ours), named_arrays(theirs)
    assert set(ours) == set(theirs)
    for name in ours:  # bitwise: no tolerance
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def stopping_after(case, step, number=signal.SIGTERM):
    """The update, with a signal that comes while the step after `step` runs."""

    def update(state, batch):
        done = int(state.step) + 1
        result = case.update(state, batch)
        if done == step:
            os.kill(os.getpid(), number)
        return result

    return update


def logged(path):
    """What a metrics file says, apart from the clock."""
    clock = ("time", "tokens_per_second", "input_wait", "save_wait")
    return [
        {key: value for key, value in line.items() if key not in clock}
        for line in read_metrics(path / "metrics.jsonl")
    ]


def checkpoint_steps(path):
    return sorted(int(step.name) for step in (path / "checkpoints").iterdir())


def test_a_run_logs_every_interval_and_before_every_checkpoint(whole):
    state, path = whole
    assert int(state.step) == STEPS
    lines = read_metrics(path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 7, 10, 12]
    assert checkpoint_steps(path) == [7, 12]
    rate = learning_rate(OPTIMIZER, STEPS)
    for line in lines:
        assert line["learning_rate"] == float(rate(line["step"] - 1))
        assert line["source"] == "text"
        assert line["tokens_per_second"] > 0
        assert 0 <= line["input_wait"] <= 1
        assert abs(line["time"] - time.time()) < 600
        assert line["gradient_norm"] > 0


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, 3), (signal.SIGINT, 7)])
def test_a_run_stopped_by_a_signal_and_begun_again_ends_bitwise_the_same(
    case, whole, tmp_path, number, stop, capsys
):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as caught:
        case.train(tmp_path, update=stopping_after(case, stop, number))
    assert caught.value.code == 75
    assert f"stopped after step {stop} of {STEPS}" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert checkpoint_steps(tmp_path) == [stop]
    assert logged(tmp_path)[-1]["step"] == stop
    seen = []

    def batch_at(step):
        seen.append(step)
        return case.batch_at(step)

    state = case.train(tmp_path, batch_at=batch_at)
    assert sorted(seen) == list(range(stop, STEPS))  # nothing is read again
    assert case.update._cache_size() == 1  # or compiled again
    assert_same_state(state, whole[0])
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == sorted({5, 7, 10, 12, stop})
    if stop == 7:  # where a line was due anyway, the lines are the same ones
        assert lines == logged(whole[1])


def test_a_run_that_is_complete_does_nothing_more(case, whole):
    state, path = whole
    lines = (path / "metrics.jsonl").read_text()

    def never(*_):
        raise AssertionError("nothing is left to do")

    again = case.train(path, update=never, batch_at=never)
    assert_same_state(again, state)
    assert (path / "metrics.jsonl").read_text() == lines


def test_a_signal_in_the_last_step_ends_the_process_with_a_complete_stage(
    mlm, tmp_path
):
    with pytest.raises(SystemExit) as stopped:
        mlm.train(tmp_path, update=stopping_after(mlm, STEPS))
    assert stopped.value.code == 75
    assert checkpoint_steps(tmp_path) == [7, 12]
    assert int(mlm.train(tmp_path).step) == STEPS


def test_the_second_ctrl_c_does_not_wait(mlm, tmp_path):
    def update(state, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return mlm.update(state, batch)

    with pytest.raises(KeyboardInterrupt):
        mlm.train(tmp_path, update=update)


def test_lines_logged_after_the_last_checkpoint_are_logged_again(mlm, tmp_path):
    def dies(state, batch):
        if int(state.step) == 11:
            raise RuntimeError("power cut")
        return mlm.update(state, batch)

    with pytest.raises(RuntimeError, match="power cut"):
        mlm.train(tmp_path, update=dies)
    assert [line["step"] for line in logged(tmp_path)] == [5, 7, 10]
    # A cut last line, as a kill leaves it.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    mlm.train(tmp_path)
    assert [line["step"] for line in logged(tmp_path)] == [5, 7, 10, 12]


def test_every_step_is_logged_once_and_the_newest_checkpoints_stay(mlm, tmp_path):
    config = LoopConfig(steps=STEPS, batch_size=4, seed=0, log_every=1, save_every=2)
    mlm.train(tmp_path, config=config)
    assert [line["step"] for line in logged(tmp_path)] == list(range(1, STEPS + 1))
    assert checkpoint_steps(tmp_path) == [10, 12]  # the newest two


def test_a_step_is_read_when_the_next_one_and_its_batch_are_on_their_way(
    mlm, tmp_path, monkeypatch
):
    events, device_get = [], jax.device_get

    def update(state, batch):
        step = len([kind for kind, _ in events if kind == "step"])
        events.append(("step", step))
        return state, {"loss": jnp.float32(step)}

    def place(arrays):
        events.append(("place", len([kind for kind, _ in events if kind == "place"])))
        return arrays

    def read(values):
        if isinstance(values, dict) and "loss" in values:
            events.append(("read", int(values["loss"])))
        return device_get(values)

    monkeypatch.setattr(jax, "device_get", read)
    config = dataclasses.replace(CONFIG, steps=4, log_every=1, save_every=4)
    mlm.train(tmp_path, config=config, update=update, place=place)
    assert events == [
        *(("place", 0), ("step", 0)),
        *(("place", 1), ("step", 1), ("read", 0)),
        *(("place", 2), ("step", 2), ("read", 1)),
        *(("place", 3), ("step", 3), ("read", 2)),
        ("read", 3),  # for the last line
    ]


def test_a_line_is_the_mean_over_its_steps(mlm, tmp_path):
    every = LoopConfig(steps=STEPS, batch_size=4, seed=0, log_every=1, save_every=7)
    mlm.train(tmp_path / "every", config=every)
    mlm.train(tmp_path / "means")
    single = [line["loss"] for line in logged(tmp_path / "every")]
    means = [line["loss"] for line in logged(tmp_path / "means")]
    spans = [single[:5], single[5:7], single[7:10], single[10:]]
    # A float32 sum of five.
    assert means == pytest.approx([np.mean(span) for span in spans], rel=1e-6)


def test_batches_come_in_order_however_long_they_take(mlm, tmp_path):
    steps, calls = [], []

    def batch_at(step):
        time.sleep(0.02 if step % 3 == 0 else 0)  # others overtake it in their threads
        calls.append(step)
        batch = mlm.batch_at(step)
        return dataclasses.replace(batch, source=str(step))

    def update(state, batch):
        steps.append(int(state.step))
        expected = mlm.batch_at(steps[-1]).arrays
        np.testing.assert_array_equal(batch.tokens.ids, expected.tokens.ids)
        np.testing.assert_array_equal(batch.positions, expected.positions)
        return mlm.update(state, batch)

    mlm.train(tmp_path, update=update, batch_at=batch_at)
    assert steps == sorted(calls) == list(range(STEPS))
    assert [line["source"] for line in logged(tmp_path)] == ["4", "6", "9", "11"]


def test_a_fault_in_making_a_batch_is_the_error_itself(mlm, tmp_path):
    def batch_at(step):
        if step == 9:
            raise ValueError("pair 17 of 'forum' has no text")
        return mlm.batch_at(step)

    with pytest.raises(ValueError) as caught:
        mlm.train(tmp_path, batch_at=batch_at)
    assert str(caught.value) == "pair 17 of 'forum' has no text"
    # What was reached before is kept, and a repaired run goes on from it.
    assert checkpoint_steps(tmp_path) == [7]
    assert int(mlm.train(tmp_path).step) == STEPS


def test_padding_and_the_wait_for_input_are_measured(mlm, tmp_path):
    def half_empty_and_late(step):
        time.sleep(0.3)  # two threads make them: one comes every 0.15 s
        batch = mlm.batch_at(step)
        return dataclasses.replace(batch, num_columns=2 * batch.num_tokens)

    mlm.train(tmp_path / "late", batch_at=half_empty_and_late)
    mlm.train(tmp_path / "ready")
    late = read_metrics(tmp_path / "late" / "metrics.jsonl")
    assert all(line["padding"] == 0.5 for line in late)
    # A step of this model takes milliseconds, so most of some interval was a wait.
    assert max(line["input_wait"] for line in late) > 0.5
    for line in read_metrics(tmp_path / "ready" / "metrics.jsonl"):
        assert line["padding"] == 0


def alternating(case, step):
    """The batch of a step, said to be of one source after the other."""
    return dataclasses.replace(case.batch_at(step), source="ab"[step % 2])


def test_a_line_tells_the_sources_apart(tmp_path):
    case = make_case("contrastive")
    every = dataclasses.replace(CONFIG, log_every=1)
    case.train(
        tmp_path / "every",
        config=every,
        batch_at=functools.partial(alternating, case),
    )
    case.train(tmp_path / "means", batch_at=functools.partial(alternating, case))
    single = logged(tmp_path / "every")
    for step, line in enumerate(single):
        own = {name for name in line if name.startswith("accuracy/")}
        assert own == {f"accuracy/{'ab'[step % 2]}"}
    line = logged(tmp_path / "means")[0]  # of the steps 1 to 5: a b a b a
    for name in ("accuracy", "loss"):
        values = [line[name] for line in single[:5]]
        assert line[f"{name}/a"] == pytest.approx(np.mean(values[::2]), rel=1e-6)
        assert line[f"{name}/b"] == pytest.approx(np.mean(values[1::2]), rel=1e-6)


def not_finite_at(case, *steps):
    """The update, which comes out as not a number at some steps, counted from 1."""

    def update(state, batch):
        bad = int(state.step) + 1 in steps
        model, moments = jax.tree.map(jnp.copy, (state.model, state.optimizer))
        new, metrics = case.update(state, batch)
        loss = jnp.float32(np.nan) if bad else metrics["loss"]
        norm = metrics["gradient_norm"]
        (model, moments), skipped = keep_if_finite(
            (model, moments), (new.model, new.optimizer), loss=loss, gradient_norm=norm
        )
        metrics = {**metrics, "loss": loss, "skipped": skipped}
        return TrainState(model, moments, new.step), metrics

    return update


def test_a_step_that_is_not_finite_is_left_out_and_counted(mlm, tmp_path):
    state = mlm.train(tmp_path, update=not_finite_at(mlm, 3, 4, 6, 7))
    assert int(state.step) == STEPS
    for name, array in named_arrays(state).items():
        assert np.isfinite(array).all(), name
        if name.endswith("count"):
            assert int(array) == STEPS - 4
    lines = logged(tmp_path)
    assert [line["skipped"] for line in lines] == [2, 2, 0, 0]
    assert lines[0]["loss"] > 0  # of the other three steps
    assert lines[1]["loss"] is None  # both of its steps were skipped
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_too_many_skipped_steps_end_the_run_with_the_last_checkpoint(mlm, tmp_path):
    config = dataclasses.replace(CONFIG, max_skipped_steps=3, save_every=2)
    with pytest.raises(FloatingPointError, match="the last 3 steps were skipped"):
        mlm.train(
            tmp_path, config=config, update=not_finite_at(mlm, 2, 5, 6, *range(8, 13))
        )
    # Steps 8, 9 and 10: step 10 is not saved, and 8 holds what 7 left.
    assert checkpoint_steps(tmp_path) == [6, 8]
    assert int(mlm.train(tmp_path, config=config).step) == STEPS


def test_evaluations_are_in_the_lines_and_choose_the_best_checkpoint(mlm, tmp_path):
    scores = {2: 0.1, 4: 0.7, 6: 0.3, 8: 0.4, 10: 0.2, 12: 0.2}
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        return {"ndcg": scores[seen[-1]]}

    config = dataclasses.replace(
        CONFIG, evaluate_every=2, best="evaluation/ndcg", keep=1
    )
    mlm.train(tmp_path, config=config, evaluate=evaluate)
    assert seen == list(scores)
    found = {
        line["step"]: line["evaluation/ndcg"]
        for line in logged(tmp_path)
        if "evaluation/ndcg" in line
    }
    assert found == scores
    assert checkpoint_steps(tmp_path) == [4, 12]


def test_an_evaluation_changes_no_bit_of_the_training(case, whole, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate_every=3)
    state = case.train(tmp_path, config=config, evaluate=lambda state: {"x": 1.0})
    assert_same_state(state, whole[0])


def test_the_best_checkpoint_by_loss_needs_no_evaluation(mlm, tmp_path):
    config = dataclasses.replace(
        CONFIG, save_every=1, keep=1, best="loss", best_mode="min"
    )
    mlm.train(tmp_path, config=config)
    losses = {line["step"]: line["loss"] for line in logged(tmp_path)}
    best = min(losses, key=lambda step: losses[step])
    assert checkpoint_steps(tmp_path) == sorted({best, STEPS})


@pytest.mark.parametrize(
    "changes, evaluate, message",
    [
        ({"evaluate_every": 2}, None, "nothing to evaluate with"),
        ({"best": "los"}, None, "best='los' is not a metric: .*'loss'"),
        (
            {"best": "evaluation/ndgc", "evaluate_every": 2},
            lambda state: {"ndcg": 1.0},
            "best='evaluation/ndgc' is not a metric: .*'evaluation/ndcg'",
        ),
        ({"wandb": "project"}, None, "pip install wandb"),
    ],
)
def test_what_is_asked_for_and_not_there_is_an_error(
    mlm, tmp_path, monkeypatch, changes, evaluate, message
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        mlm.train(tmp_path, config=config, evaluate=evaluate)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("keep", 0, "keep=0 must be at least 1"),
        ("max_skipped_steps", 0, "max_skipped_steps=0 must be at least 1"),
        ("profile_steps", 0, "profile_steps=0 must be at least 1"),
        ("evaluate_every", -1, "evaluate_every=-1 must not be negative"),
        ("best", "evaluation/ndcg", "set evaluate_every"),
    ],
)
def test_settings_that_no_run_can_mean_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **{field: value})


def test_utilisation_is_flops_over_the_chips_peak(mlm, tmp_path, monkeypatch):
    monkeypatch.setattr("nomic_jax.training.metrics.peak_flops", lambda kind: 1e9)
    seen = []

    def flops_per_token(arrays):
        seen.append(arrays.tokens.ids.shape)
        return 2e3

    mlm.train(tmp_path, flops_per_token=flops_per_token)
    assert seen == [(4, 8)] * 4  # one batch a line
    for line in read_metrics(tmp_path / "metrics.jsonl"):
        rate = line["tokens_per_second"] / jax.local_device_count()
        # Both are rounded: to 0.1 tokens a second, and to 1e-4.
        assert line["mfu"] == pytest.approx(rate * 2e3 / 1e9, abs=2e-4)


def test_the_time_checkpoints_hold_the_loop_up_is_measured(
    mlm, tmp_path, monkeypatch, capsys
):
    save = Checkpoints.save

    def slow(*arguments):
        time.sleep(0.4)
        save(*arguments)

    monkeypatch.setattr(Checkpoints, "save", slow)
    mlm.train(tmp_path)
    lines = {line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl")}
    # The checkpoint of step 7 comes after that step's line.
    assert lines[10]["save_wait"] > 0.5
    assert lines[5]["save_wait"] == lines[7]["save_wait"] == 0
    assert "of it held up by checkpoints" in capsys.readouterr().err


def test_a_trace_of_the_steps_asked_for_is_in_the_folder(mlm, tmp_path, monkeypatch):
    calls = []
    profiler = jax.profiler
    start, stop = profiler.start_trace, profiler.stop_trace
    steps = []

    def update(state, batch):
        steps.append(int(state.step) + 1)
        return mlm.update(state, batch)

    monkeypatch.setattr(
        profiler, "start_trace", lambda at: (calls.append(len(steps)), start(at))
    )
    monkeypatch.setattr(
        profiler, "stop_trace", lambda: (calls.append(len(steps)), stop())
    )
    config = dataclasses.replace(CONFIG, profile_start=4, profile_steps=2)
    mlm.train(tmp_path, config=config, update=update)
    assert calls == [3, 5]  # steps done before it began, and before it ended
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    calls.clear()
    config = dataclasses.replace(config, profile_start=12)  # the run ends within it
    mlm.train(tmp_path / "cut", config=config)
    assert len(calls) == 2


def test_worker_processes_train_to_the_same_bits(case, whole, tmp_path):
    state = case.train(tmp_path, config=dataclasses.replace(CONFIG, workers=2))
    assert_same_state(state, whole[0])
    assert logged(tmp_path) == logged(whole[1])


def test_the_optimizer_remembers_all_steps(whole):
    arrays = named_arrays(whole[0])
    counts = [a for name, a in arrays.items() if name.endswith("count")]
    assert counts and all(int(count) == STEPS for count in counts)
    moments = [a for name, a in arrays.items() if ".mu." in name and "type" not in name]
    assert moments and all(np.asarray(array).any() for array in moments)
