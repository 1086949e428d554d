import json
import os
import socket
import subprocess
import sys

import pytest
from compilation import environment
from paths import HELPERS

from nomic_jax.distributed import hosts


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def outcomes(commands):
    """Run commands next to one another: their statuses and what each has printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(),
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


ALONE = """
from nomic_jax.distributed import hosts
hosts.start()
hosts.start(hosts=1)
assert (hosts.count(), hosts.number(), hosts.is_first()) == (1, 0, True)
hosts.assert_equal_across_hosts("versions", {"jax": object()})  # with nothing
assert hosts.broadcast_from_host0("report", lambda: 3) == 3
"""


@pytest.mark.slow
def test_a_machine_alone_needs_no_other(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "OMPI"))]:
        monkeypatch.delenv(name)
    # Of its own, since hosts are joined before JAX computes anything.
    ((status, _, errors),) = outcomes([("-c", ALONE)])
    assert status == 0, errors


@pytest.mark.slow
def test_two_hosts_agree_or_say_who_differs_and_who_is_missing():
    port = free_port()
    commands = [(HELPERS / "hosts_process.py", port, host) for host in (0, 1)]
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
        # Where work fails on one host, it fails on all; where on all alike, once.
        assert lines[5:7] == ["stores: host 1: no such store", "no such text"]
        assert "host 0: place 0; host 1: place 1" in lines[8]
    assert (first[7], second[7]) == (0, 1)
    assert "stores: host 1 of 2 did not come within 1 s" in first[9]
