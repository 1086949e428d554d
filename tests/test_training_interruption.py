import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nomic_jax.training.run_folder import read_metrics

HERE = Path(__file__).parent
PROGRAM = HERE / "training_process.py"
STEPS = 16


@pytest.fixture
def begin():
    """Start a training process; its output goes into a file beside its folder."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    processes = []

    def start(folder, *arguments):
        with folder.with_name(f"{folder.name}.{arguments[3:4]}.log").open("w") as log:
            command = [sys.executable, PROGRAM, folder, *map(str, arguments)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        processes.append(process)
        return process

    yield start
    for process in processes:  # what a failed test leaves
        if process.poll() is None:
            process.kill()
            process.wait()


def ended_well(process, folder, step):
    assert process.wait(timeout=120) == 0, folder
    return saved(folder, step)


def saved(folder, step):
    """The arrays of a checkpoint."""
    import orbax.checkpoint as ocp

    path = folder.resolve() / "checkpoints" / str(step) / "default"
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)  # wherever it was written from
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(path).item_metadata.tree
        every = {name: as_numpy for name in names}
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=every))


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name in ours:  # bitwise: no tolerance
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def writing(folder):
    """Whether a checkpoint is being written."""
    place = folder / "checkpoints"
    return place.is_dir() and any("tmp" in path.name for path in place.iterdir())


def is_writing_or_ended(folder, process):
    return writing(folder) or process.poll() is not None


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bitwise_the_same(begin, tmp_path):
    arguments = (STEPS, 2, 0.15)
    whole = ended_well(begin(tmp_path / "whole", *arguments), tmp_path / "whole", STEPS)
    folder = tmp_path / "killed"
    generator = np.random.default_rng()
    seed = int(generator.integers(2**31))
    generator = np.random.default_rng(seed)
    inside = 0
    for attempt in range(10):
        process = begin(folder, *arguments)
        if attempt < 5:  # inside a save, at any moment of it
            wait_for(functools.partial(is_writing_or_ended, folder, process))
            time.sleep(generator.uniform(0, 0.015))
        else:  # a whole run takes about five seconds
            time.sleep(generator.uniform(1.0, 4.0))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        inside += writing(folder)
    assert inside >= 3, f"{inside} kills came inside a save; seed {seed}"
    assert_same(ended_well(begin(folder, *arguments), folder, STEPS), whole)
    ours, theirs = (
        [(line["step"], line["loss"]) for line in read_metrics(path / "metrics.jsonl")]
        for path in (folder, tmp_path / "whole")
    )
    assert dict(ours) == dict(theirs) and len(ours) == len(theirs)
    assert not list(folder.rglob("*.damaged"))  # killed is not damaged


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_host_stops_all_after_the_same_step(begin, tmp_path, number):
    # No checkpoint is due before the end, so that the one there is the signal's.
    folder = tmp_path / "two"
    arguments, port = (200, 500, 0.05), free_port()
    hosts = [begin(folder, *arguments, host, 2, port) for host in (0, 1)]
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.stat().st_size > 0)
    hosts[1].send_signal(number)  # not the one that writes
    assert [process.wait(timeout=60) for process in hosts] == [75, 75]
    (path,) = (folder / "checkpoints").iterdir()
    step = int(path.name)
    assert 0 < step < 200
    for log in tmp_path.glob("two.*.log"):
        assert f"stopped after step {step} of 200" in log.read_text()
    assert read_metrics(metrics)[-1]["step"] == step
    # Begun again, on two hosts and then on one, it ends where one host alone ends.
    more, port = (step + 3, 500, 0.0), free_port()
    hosts = [begin(folder, *more, host, 2, port) for host in (0, 1)]
    assert [process.wait(timeout=60) for process in hosts] == [0, 0]
    last = step + 6
    shared = ended_well(begin(folder, last, 500, 0.0), folder, last)
    alone = ended_well(begin(tmp_path / "one", last, 500, 0.0), tmp_path / "one", last)
    for name in alone:
        # Sums of 32 float32 terms in another order, and their effect over the steps.
        np.testing.assert_allclose(shared[name], alone[name], rtol=1e-4, atol=1e-6)
