"""Measure the processor time of the README's test command, and where it goes.

    python tools/test_time.py                 # the command after the README's marker
    python tools/test_time.py --command "..." # another pytest command
    python tools/test_time.py --files 25      # more of the costliest files

Processor time is user plus system of pytest and of every process that a test starts and
waits for; installing is not counted. Run it on an idle machine: on a busy one the same
work takes up to half as much again. This file is also the pytest plugin that the run
loads in each of its workers.
"""

import argparse
import collections
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKER = "<!-- test command -->"
FOLDER = "TEST_TIME_FOLDER"  # where each worker leaves a line a test
COMPILATION = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}

counts = collections.Counter()  # of the test that runs


# The plugin.


def processor_seconds() -> float:
    """Return what this process and the children it waited for have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def write_line(test: str, **values: float) -> None:
    """Append a measurement to this worker's own file."""
    with open(Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps({"test": test, **values}) + "\n")


def pytest_configure(config) -> None:
    """Measure nothing in the process that only hands tests to workers."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.unregister(name="test_time")


def pytest_collection_finish() -> None:
    """Note what imports and collection took, and begin to count."""
    import jax.monitoring

    def on_duration(event, seconds, **_):
        if event in COMPILATION:
            counts[COMPILATION[event]] += seconds
            counts["programs"] += COMPILATION[event] == "compiling"

    def on_audit(event, _):
        counts["processes"] += event == "subprocess.Popen"

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    sys.addaudithook(on_audit)
    write_line("imports and collection", seconds=processor_seconds())


def pytest_runtest_logstart(nodeid: str) -> None:
    """Start a test's clocks, its fixtures included."""
    counts.clear()
    counts.update(seconds=-processor_seconds(), elapsed=-time.monotonic())


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Write what a test took."""
    counts.update(seconds=processor_seconds(), elapsed=time.monotonic())
    write_line(nodeid, **counts)


# The command line.


def test_command() -> tuple[str, str]:
    """Return how the README installs, and how it then tests."""
    text = (ROOT / "README.md").read_text().partition(MARKER)[2]
    command = re.search(r"^python3 .*$", text, re.MULTILINE)
    if command is None:
        raise SystemExit(f"README.md has no command after {MARKER}")
    install, _, test = command.group().rpartition(" && ")
    return install, test


def used_by_children() -> float:
    """Return the processor seconds of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_table(rows: list[tuple[str, collections.Counter]], title: str) -> None:
    """Print the costliest rows: their seconds, and what they were spent on."""
    columns = ("seconds", "compiling", "lowering", "tracing", "programs", "processes")
    print(f"\n{title}\n" + " ".join(f"{name:>9}" for name in columns))
    for name, row in rows:
        figures = (
            f"{row[each]:9.1f}" if each not in columns[4:] else f"{row[each]:9.0f}"
            for each in columns
        )
        print(" ".join(figures), name)


def main() -> int:
    """Run the tests and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--command", help="instead of the README's, not installing")
    parser.add_argument("--files", type=int, default=10, help="costliest files shown")
    parser.add_argument("--tests", type=int, default=10, help="costliest tests shown")
    options = parser.parse_args()
    install, test = ("", options.command) if options.command else test_command()
    if install:
        subprocess.run(install, shell=True, check=True, cwd=ROOT)
    with tempfile.TemporaryDirectory() as folder:
        plugin = {"PYTEST_PLUGINS": "test_time", "PYTHONPATH": str(ROOT / "tools")}
        environment = os.environ | plugin | {FOLDER: folder}
        begun, before = time.monotonic(), used_by_children()
        status = subprocess.run(test, shell=True, cwd=ROOT, env=environment).returncode
        elapsed, used = time.monotonic() - begun, used_by_children() - before
        lines = [
            json.loads(line)
            for file in Path(folder).glob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
    by_file: dict[str, collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    by_test = [(line.pop("test"), collections.Counter(line)) for line in lines]
    for name, row in by_test:
        by_file[name.partition("::")[0]].update(row)

    def costliest(rows, most):
        return sorted(rows, key=lambda each: -each[1]["seconds"])[:most]

    print(f"\n{test}\nstatus {status}: {used:.0f} processor-seconds", end="")
    print(f" in {elapsed / 60:.1f} minutes; {len(by_test)} tests")
    print_table([("all", sum(by_file.values(), collections.Counter()))], "in the tests")
    print_table(costliest(by_file.items(), options.files), "costliest files")
    print_table(costliest(by_test, options.tests), "costliest tests")
    return status


if __name__ == "__main__":
    sys.exit(main())
