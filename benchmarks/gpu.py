"""All that a GPU has to say, in one command of nine minutes, on a host without network.

    python benchmarks/gpu.py --wheels wheels --results results

The host has jax for CUDA, PyTorch, transformers and sentence-transformers. Of the
wheels those that it lacks are installed into a folder that is deleted again;
wheels/tokamax, if it is there, goes before what the host has, but for what reads a
command line with tyro. Then the tests marked `gpu` run, and the benchmarks. Each step
has a time limit, and one that fails or is cut does not stop the next. RESULTS gets the
rows as they are measured, what each step printed, and steps.jsonl, which says how each
ended.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 530.0  # seconds; the host's limit is ten minutes, and starting takes some
# JAX takes this share of the GPU's memory when it starts; PyTorch has the rest.
SHARE = "0.45"


@dataclasses.dataclass(frozen=True)
class Step:
    """A program of its own."""

    name: str
    limit: float  # seconds
    command: tuple[str, ...]
    tokamax: bool = True  # whether it can have tokamax, and so no tyro


def benchmark(name: str, limit: float, *arguments: str, tokamax: bool = True) -> Step:
    """Return the step of a script here."""
    return Step(name, limit, (f"benchmarks/{name}.py", *arguments), tokamax)


def steps() -> list[Step]:
    """Return what to run, in the order of what would be missed most."""
    marked = sorted(
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").glob("test_*.py")
        if "mark.gpu" in file.read_text()
    )
    pytest = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *marked)
    return [
        *([Step("tests", 100, pytest)] if marked else []),
        benchmark("encode", 150),
        benchmark("train", 170),
        benchmark("experts", 30),
        # The last has what the others left.
        benchmark("convert", 150, "--in-memory", "--rounds", "1", tokamax=False),
    ]


def install(wheels: Path, target: Path, *, over_the_host: bool) -> None:
    """Install a folder's wheels, as they are, without asking an index.

    Args:
        wheels: the folder.
        target: where to.
        over_the_host: also those of packages that the host has.
    """
    chosen = []
    for wheel in sorted(wheels.glob("*.whl")):
        name = re.sub("[-_.]+", "-", wheel.name.split("-")[0]).lower()
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there = None
        if there is None or over_the_host:
            chosen.append(str(wheel))
        else:
            print(f"{name} {there} is the host's; {wheel.name} stays where it is")
    if chosen:
        options = ("--no-deps", "--no-index", "--no-compile", "--quiet")
        command = (sys.executable, "-m", "pip", "install", *options)
        command = (*command, "--target", str(target), *chosen)
        subprocess.run(command, check=True)
    print(f"installed {len(chosen)} of the wheels in {wheels}", flush=True)


def run(step: Step, limit: float, log: Path, environment: Mapping[str, str]) -> str:
    """Run a step, what it prints going to a file, and say how it ended."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            (sys.executable, *step.command),
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children end with it
        )
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "cut"
    return "done" if status == 0 else f"failed with status {status}"


def further(given: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the arguments that were given for steps, by name.

    Raises:
        ValueError: there is no such step.
    """
    known = {step.name for step in steps()}
    for name, _ in given:
        if name not in known:
            raise ValueError(f"there is no step {name!r}; there are: {sorted(known)}")
    return {name: tuple(shlex.split(text)) for name, text in given}


def main() -> int:
    """Run every step; the exit status is 0 where all of them were done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="a folder; none: all is installed")
    parser.add_argument("--results", type=Path, required=True, help="a folder")
    parser.add_argument(
        "--platform", default="cuda", help="of JAX; with cpu this is a rehearsal"
    )
    parser.add_argument(
        "--arguments",
        nargs=2,
        action="append",
        default=[],
        metavar=("STEP", "TEXT"),
        help="further ones of a step, as: experts '--rounds 9'",
    )
    options = parser.parse_args()
    more = further(options.arguments)
    began, failed = time.monotonic(), 0
    results = options.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        target, first = Path(work, "packages"), Path(work, "tokamax")
        if options.wheels is not None:
            install(options.wheels, target, over_the_host=False)
            install(options.wheels / "tokamax", first, over_the_host=True)
        environment = {
            **os.environ,
            "JAX_PLATFORMS": options.platform,  # an error where there is no such device
            "NOMIC_JAX_RESULTS": str(results),
            "XDG_CACHE_HOME": str(Path(work, "cache")),
            "HF_HUB_OFFLINE": "1",
        }
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", SHARE)
        for step in steps():
            left = TOTAL - (time.monotonic() - began)
            step = dataclasses.replace(
                step, command=(*step.command, *more.get(step.name, ()))
            )
            path = [str(first)] * step.tokamax + [str(ROOT), str(target)]
            path += filter(None, [os.environ.get("PYTHONPATH")])
            environment["PYTHONPATH"] = os.pathsep.join(path)
            started = time.monotonic()
            ended = "left out, as no time was left"
            if left > 0:
                log = results / f"{step.name}.log"
                ended = run(step, min(step.limit, left), log, environment)
            seconds = round(time.monotonic() - started, 1)
            line = {"step": step.name, "ended": ended, "seconds": seconds}
            with (results / "steps.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{step.name}: {ended}, {seconds:.0f} s", flush=True)
            failed += ended != "done"
    print(f"{time.monotonic() - began:.0f} s in all; see {results}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
