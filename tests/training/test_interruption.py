import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import training_process
from compilation import environment
from paths import HELPERS
from training_process import STAGES

from nomic_jax.distributed.hosts import HEARTBEAT_SECONDS
from nomic_jax.training.metrics import read_metrics

PROGRAM = HELPERS / "training_process.py"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    training_process.write_stores(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, which the processes share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def forks():
    """Where processes come from that have everything imported when they begin."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HELPERS.parent}{os.pathsep}{HELPERS}")
        context.set_forkserver_preload(["training_process"])
        context.Process(target=abs, args=(0,)).start()  # starts the server, too
    yield context
    multiprocessing.forkserver._forkserver._stop()  # waited for, its time is counted


@pytest.fixture
def begin(forks, stores, cache):
    """Start a stage in a process; its output goes into a file next to its folder."""
    processes = []

    def start(name, folder, **options):
        begun = Path(f"{folder}.begun")
        begun.unlink(missing_ok=True)
        options |= {"cache": str(cache), "log": f"{folder}.log"}
        process = forks.Process(
            target=training_process.train_stage,
            args=(name, str(stores), str(folder)),
            kwargs=options,
        )
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:  # what a failed test leaves
        process.kill()
        process.join()


def ended(process, seconds=120):
    """Wait for a process and return its status, negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "it never ended"
    return process.exitcode


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def wait_for_step(folder, process):
    """Return when the loop of a process has done a step, or the process has ended."""
    wait_for(lambda: Path(f"{folder}.begun").exists() or process.exitcode is not None)


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


def losses(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    found = {line["step"]: line["loss"] for line in lines}
    assert len(found) == len(lines), "a step has two lines"
    return found


def newest(folder):
    """The step of the newest whole checkpoint, 0 where there is none."""
    place = folder / "checkpoints"
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def is_writing(folder):
    """Whether a checkpoint is being written, or was when its process ended."""
    place = folder / "checkpoints"
    return place.is_dir() and any("tmp" in path.name for path in place.iterdir())


def once(name, names):
    """Try one stage; the others, which have the same loop and checkpoints, as sweep."""
    others = [each for each in names if each != name]
    return [name, *(pytest.param(each, marks=pytest.mark.sweep) for each in others)]


KILLS, INSIDE = 4, 2
# Each write takes so much longer than it would: about half of the run is one, on a
# busy machine as on an idle one.
RUN = {"steps": 60, "save_every": 1, "pause": 0.05, "writing": 0.2}
AT_ONCE = {"steps": 60, "save_every": 500}
BITS = {"optimized": True}


@pytest.mark.slow
@pytest.mark.parametrize("name", once("finetune", STAGES))
def test_a_stage_killed_at_random_moments_ends_bitwise_the_same(begin, tmp_path, name):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ended(begin(name, whole, **AT_ONCE, **BITS)) == 0
    seed = np.random.SeedSequence().entropy
    rng = np.random.default_rng(seed)
    # Moments of the least time that the steps take together, so that all come before
    # the end. Time is still while a process starts.
    moments = np.sort(rng.uniform(0, RUN["steps"] * RUN["pause"], KILLS))
    waits = np.diff(moments, prepend=0.0).tolist()
    kills = inside = 0
    # More where fewer than two of them came inside a save, a rare case.
    while kills < KILLS or (inside < INSIDE and kills < 3 * KILLS):
        process = begin(name, killed, **RUN, **BITS)
        wait_for_step(killed, process)
        time.sleep(waits[kills] if kills < KILLS else rng.uniform(0, np.mean(waits)))
        process.kill()
        assert ended(process) == -signal.SIGKILL, f"it was done; seed {seed}"
        kills, inside = kills + 1, inside + is_writing(killed)
    print(f"{name}: {inside} of {kills} kills came inside a save")
    assert inside >= INSIDE, f"only {inside} of {kills}; seed {seed}"
    assert ended(begin(name, killed, **AT_ONCE, **BITS)) == 0, f"seed {seed}"
    assert losses(killed) == losses(whole), f"seed {seed}"
    steps = RUN["steps"]
    assert_same(saved(killed, steps), saved(whole, steps))
    assert not list(killed.rglob("*.damaged"))  # killed is not damaged


def batches(folder):
    """What the steps of the processes in a folder were given, in order."""
    return Path(f"{folder}.batches").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "others"),
    [
        # test_training_checkpoints restores what eight wrote onto one, too.
        ("finetune", [4]),
        *(
            pytest.param(n, [4, 1], marks=pytest.mark.sweep)
            for n in ("mlm", "finetune")
        ),
    ],
)
def test_a_stage_stopped_on_8_devices_goes_on_with_the_same_batches_on_fewer(
    begin, tmp_path, name, others
):
    run = {"steps": 12, "save_every": 500}  # the one checkpoint is the signal's
    eight = {"devices": 8, "mesh": {"fsdp": 2}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert ended(begin(name, whole, **run, **eight)) == 0
    process = begin(name, stopped, **run, **eight, pause=0.3)
    wait_for_step(stopped, process)
    time.sleep(0.7)
    process.terminate()
    assert ended(process) == 75
    step = newest(stopped)
    assert 1 < step < 12
    first, expected = batches(stopped), losses(whole)
    assert first == batches(whole)[:step]
    for devices in others:
        mesh = {"fsdp": 2} if devices > 1 else {}
        folder = tmp_path / f"on_{devices}"
        subprocess.run(["cp", "-r", stopped, folder], check=True)
        assert ended(begin(name, folder, **run, devices=devices, mesh=mesh)) == 0
        assert first + batches(folder) == batches(whole)
        found = losses(folder)
        assert [found[s] for s in expected] == pytest.approx(
            list(expected.values()), rel=1e-5
        ), devices


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def two_hosts(**options):
    """Start a stage on two hosts, whole programs; end both at the end of the block."""
    folder = options["folder"]
    Path(f"{folder}.begun").unlink(missing_ok=True)
    options |= {"coordinator": f"localhost:{free_port()}", "of_hosts": 2}
    started = []
    for host in (0, 1):
        options |= {"host": host, "log": f"{folder}.{host}.log"}
        Path(options["log"]).unlink(missing_ok=True)
        command = [sys.executable, PROGRAM, json.dumps(options)]
        started.append(subprocess.Popen(command, env=environment()))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


ABORTED = -signal.SIGABRT  # 134 to a shell: so JAX ends a host whose peer is gone


ASKED = (signal.SIGTERM, 1, [75, 75])  # not the one that writes
FIRST_DIES = (signal.SIGKILL, 0, [-signal.SIGKILL, ABORTED])
OTHER_DIES = (signal.SIGKILL, 1, [ABORTED, -signal.SIGKILL])


@pytest.mark.slow
@pytest.mark.parametrize(
    "ends",
    [
        (ASKED, FIRST_DIES),
        pytest.param((ASKED, FIRST_DIES, OTHER_DIES), marks=pytest.mark.sweep),
    ],
    ids=len,
)
def test_whatever_ends_one_of_two_hosts_ends_both_and_the_same_command_goes_on(
    begin, stores, cache, tmp_path, ends
):
    folder, last = tmp_path / "two", 0
    options = {"name": "finetune", "stores": str(stores), "folder": str(folder)}
    options |= {"steps": 1000, "cache": str(cache)}
    for number, to, statuses in ends:
        is_asked = number != signal.SIGKILL
        # Where they are asked to end, the only checkpoint is the signal's.
        every = 1000 if is_asked else 1
        with two_hosts(**options, save_every=every, pause=0.2) as started:
            wait_for(Path(f"{folder}.begun").exists)
            if not is_asked:
                wait_for(lambda after=last: newest(folder) > after)
            started[to].send_signal(number)
            # The heartbeat, 25 s, and what JAX takes to end.
            assert [each.wait(timeout=60) for each in started] == statuses, number
        said = [Path(f"{folder}.{host}.log").read_text() for host in (0, 1)]
        step = newest(folder)
        assert last < step < 1000
        last = step
        if is_asked:
            assert all(f"stopped after step {step} of 1000" in text for text in said)
            assert max(losses(folder)) == step
        else:
            assert "most likely indicates that another task died" in said[1 - to]
    with two_hosts(**options | {"steps": last + 3}, save_every=1000) as started:
        assert [each.wait(timeout=60) for each in started] == [0, 0]
    alone = tmp_path / "alone"
    assert ended(begin("finetune", alone, steps=last + 3, save_every=1000)) == 0
    expected, found = losses(alone), losses(folder)
    assert set(found) == set(expected)
    assert [found[step] for step in expected] == pytest.approx(
        list(expected.values()), rel=1e-5
    )


def test_a_heartbeat_is_missed_within_half_a_minute():
    assert HEARTBEAT_SECONDS <= 30
