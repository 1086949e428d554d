import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nomic_jax import hosts
from nomic_jax.training.run_folder import read_metrics

HERE = Path(__file__).parent
SMALL = (
    "--model.num_layers=1 --model.width=32 --model.mlp_width=32 --model.num_heads=2 "
    "--train.steps=3 --train.batch_size=8 --train.save_every=2 --data.row_length=32 "
    "--train.log_every=1 --train.evaluate_every=2 --data.vocab_size=400 "
    "--mining.count=3 --mining.pool=5"
).split()


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def outcomes(commands, *, devices=1, **environment):
    """Run commands beside one another: their statuses and what each has printed."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    flags = f"--xla_force_host_platform_device_count={devices}"
    forced = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | forced | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        texts = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *text)
        for process, text in zip(processes, texts, strict=True)
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("localhost:1", 2), "host=-1: give all three"),
        (("", 2, 0), "coordinator='', hosts=2, host=0: give all three"),
        (("localhost:1", 2, 2), "numbered from 0"),
        (("localhost", 2, 0), "ADDRESS:PORT"),
    ],
)
def test_hosts_that_are_half_described_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        hosts.start(*arguments)


def test_a_machine_alone_needs_no_other(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "OMPI"))]:
        monkeypatch.delenv(name)
    hosts.start()
    hosts.start(hosts=1)
    assert (hosts.count(), hosts.number(), hosts.is_first()) == (1, 0, True)
    hosts.agree("versions", {"jax": object()})  # nothing to compare it with
    assert hosts.from_first("report", lambda: 3) == 3


@pytest.mark.slow
def test_two_hosts_agree_or_say_who_differs_and_who_is_missing():
    port = free_port()
    commands = [(HERE / "hosts_process.py", port, host) for host in (0, 1)]
    (status, first, errors), (_, second, _) = outcomes(commands)
    assert status == 0, errors
    first, second = (
        [json.loads(line) for line in text.splitlines()] for text in (first, second)
    )
    assert first[:2] == [[0, 2, True], None] and second[:2] == [[1, 2, False], None]
    for lines in (first, second):
        assert "jax is '0' on host 0 and '1' on host 1" in lines[2]
        assert "sizes.b is 0 on host 0 and 1 on host 1" in lines[2]
        assert "sizes.a" not in lines[2]
        assert lines[3:5] == [{"made by": 0}, "no such text"]
    assert "stores: host 1 of 2 did not come within 1 s" in first[5]


def train(pairs, out, *further):
    """The command of one host."""
    config = HERE.parent / "configs" / "quickstart.py"
    return [
        *(HERE.parent / "train.py", "--config", config, "--out", out),
        *(f"--data.pairs={pairs}", *SMALL, *further),
    ]


def pairs_file(folder):
    path = folder / "pairs.jsonl"
    words = "red green blue old new big small tall short round square".split()
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(120):
            query = " ".join(rng.choice(words, 4)) + f" {number}"
            record = {"query": query, "document": f"About {query}: {query}."}
            file.write(json.dumps(record) + "\n")
    return path


@pytest.mark.slow
def test_a_run_on_two_hosts_ends_as_on_one(tmp_path):
    pairs = pairs_file(tmp_path)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def both(*seconds_own):
        port = free_port()
        joined = [f"--coordinator=localhost:{port}", "--hosts=2"]
        commands = [
            [*train(pairs, tmp_path / "two", *joined, f"--host={host}"), *own]
            for host, own in enumerate([(), seconds_own])
        ]
        return outcomes(commands, devices=2, **cache)

    for status, _, errors in both("--train.seed=1"):
        assert status == 2 and "seed is 0 on host 0 and 1 on host 1" in errors
    assert not (tmp_path / "two").exists()
    found = both()
    assert [status for status, *_ in found] == [0, 0], found
    # The first speaks for all.
    assert "nDCG@10" in found[0][1] and "nDCG@10" not in found[1][1]
    alone = train(pairs, tmp_path / "one", "--hosts=1")
    ((status, _, errors),) = outcomes([alone], devices=4, **cache)
    assert status == 0, errors
    for stage in ("mlm", "pretrain", "finetune"):
        ours, theirs = (
            read_metrics(tmp_path / run / stage / "metrics.jsonl")
            for run in ("two", "one")
        )
        assert [line["step"] for line in ours] == [1, 2, 3]
        for mine, its in zip(ours, theirs, strict=True):
            # Sums over devices in another order, and what two steps make of them.
            assert mine["loss"] == pytest.approx(its["loss"], rel=1e-5)
        assert any("evaluation/pairs/ndcg@10" in line for line in ours)
    ours, theirs = (
        load_file(tmp_path / run / "model" / "model.safetensors")
        for run in ("two", "one")
    )
    for name in theirs:
        # Adam makes of a gradient of 1e-9 a step of the learning rate, 1e-3, or less.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3, err_msg=name)
