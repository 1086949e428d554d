import dataclasses
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
from nomic_jax.training.loop import LoopConfig, train
from nomic_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from nomic_jax.training.run_folder import RunFolder, named_arrays, read_metrics
from nomic_jax.training.steps import (
    TrainState,
    contrastive_objective,
    make_update,
    mlm_objective,
)

STEPS = 12
CONFIG = LoopConfig(steps=STEPS, batch_size=4, seed=0, log_every=5, save_every=7)
OPTIMIZER = OptimizerConfig(
    learning_rate=0.01, weight_decay=0.1, warmup_steps=3, schedule="linear"
)
SIZES = {
    "vocab_size": 64,
    "type_vocab_size": 2,
    "num_layers": 2,
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
        self.update = make_update(objective, self.optimizer, seed=CONFIG.seed)
        self.model = jax.jit(draw)()

    def train(self, path, *, config=CONFIG, update=None, batch_at=None):
        model = jax.tree.map(jnp.copy, self.model)
        return train(
            "stage",
            TrainState.fresh(model, self.optimizer),
            update or self.update,
            batch_at or self.batch_at,
            config,
            RunFolder.open(path, {}),
            learning_rate=learning_rate(OPTIMIZER, STEPS),
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
            mlm_objective,
            mlm_batches(),
            lambda: MaskedLanguageModel(config, rngs=nnx.Rngs(0)),
        )
    embedding = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=8)
    return Case(
        contrastive_objective(embedding, scale=20.0),
        pair_batches(),
        lambda: NomicBert(ModelConfig(**SIZES), rngs=nnx.Rngs(0)),
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
    clock = ("time", "tokens_per_second", "input_wait")
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stop", [3, 7])
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


@pytest.mark.slow
def test_worker_processes_train_to_the_same_bits(case, whole, tmp_path):
    state = case.train(tmp_path, config=dataclasses.replace(CONFIG, workers=2))
    assert_same_state(state, whole[0])
    assert logged(tmp_path) == logged(whole[1])


def run_here(path, kill_after):
    """Train in this process; end it without notice once a checkpoint is on disk."""
    case = make_case("mlm")

    def update(state, batch):
        if int(state.step) == kill_after:
            deadline = time.monotonic() + 60
            while not (path / "checkpoints" / "7").is_dir():
                assert time.monotonic() < deadline, "the checkpoint never came"
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return case.update(state, batch)

    case.train(path, update=update)


@pytest.mark.slow
def test_a_killed_process_begun_again_ends_bitwise_the_same(tmp_path):
    def process(path, kill_after):
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, str(path), str(kill_after)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    ended = process(tmp_path / "whole", -1)
    assert ended.returncode == 0, ended.stderr
    ended = process(tmp_path / "killed", 11)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert checkpoint_steps(tmp_path / "killed") == [7]
    assert [line["step"] for line in logged(tmp_path / "killed")] == [5, 7, 10]
    ended = process(tmp_path / "killed", -1)
    assert ended.returncode == 0, ended.stderr
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")

    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        whole, killed = (
            reader.restore(
                (tmp_path / run / "checkpoints" / "12" / "default").resolve()
            )
            for run in ("whole", "killed")
        )
    assert set(whole) == set(killed)
    for name in whole:
        np.testing.assert_array_equal(whole[name], killed[name], err_msg=name)


def test_the_optimizer_remembers_all_steps(whole):
    arrays = named_arrays(whole[0])
    counts = [a for name, a in arrays.items() if name.endswith("count")]
    assert counts and all(int(count) == STEPS for count in counts)
    moments = [a for name, a in arrays.items() if ".mu." in name and "type" not in name]
    assert moments and all(np.asarray(array).any() for array in moments)


if __name__ == "__main__":
    run_here(Path(sys.argv[1]), int(sys.argv[2]))
