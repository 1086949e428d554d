"""Seconds and peak memory of converting a model of random weights between layouts.

    python benchmarks/convert.py [--in-memory --rounds 3]

137 M parameters as nomic-embed-text-v1.5 has them and 475 M as v2-moe, in float32, in
every direction that the family has. Beside the smaller one: loading it into PyTorch
and `save_pretrained`, which reads and writes as much and changes nothing. Each
conversion is a process of its own, and all take turns. Files are read from the page
cache and written to the disk, which may be what is measured; with --in-memory there is
none. The seconds are those behind the imports, memory is the most that the process had
resident, mapped files in it.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from environment import ROOT, environment
from flax import nnx
from record import Row, record
from turns import in_turns, median_ratio

from nomic_jax.checkpoints import Layout, read_checkpoint, save_model, write_checkpoint
from nomic_jax.config import PUBLISHED, PUBLISHED_EMBEDDINGS
from nomic_jax.model import NomicBert

# Whose layouts there are; transformers has no class for experts.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "nomic-embed-text-v1.5": ("jax", "nomic", "transformers"),
    "nomic-embed-text-v2-moe": ("jax", "nomic"),
}
BESIDE = "nomic-embed-text-v1.5"
THEIRS = "transformers, load and save"
MEMORY = "/dev/shm"  # where Linux keeps files in memory

OURS_CODE = """
from nomic_jax.checkpoints import embedding_rule, hub, model_card, reader, writer
from nomic_jax.checkpoints.conversion import Conversion, convert
def work(source, dest, layout):
    convert(Conversion(source=source, dest=dest, to=layout))
"""
THEIRS_CODE = """
from transformers import NomicBertModel
def work(source, dest, layout):
    NomicBertModel.from_pretrained(source).save_pretrained(dest)
"""
# The kernel's high-water mark is of this program alone; getrusage's would begin with
# that of the process it was forked from.
REPORT = """
import json, sys, time
began = time.perf_counter()
work(*sys.argv[1:])
seconds = time.perf_counter() - began
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([seconds, int(status["VmHWM"].split()[0]) / 2**20]))
"""


@dataclasses.dataclass(frozen=True)
class Report:
    """One conversion."""

    seconds: float  # behind the imports
    memory: float  # GiB
    whole: float  # seconds of the process


def convert_in_child(code: str, source: Path, layout: str, work: Path) -> Report:
    """Convert in a process of its own, and delete what it wrote."""
    dest = work / "converted"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT, str(source), str(dest), layout],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,  # where nomic_jax is, installed or not
    )
    whole = time.perf_counter() - began
    shutil.rmtree(dest)
    return Report(*json.loads(done.stdout.splitlines()[-1]), whole)


def write_sources(name: str, layers: int | None, work: Path) -> tuple[str, int]:
    """Write random weights in every layout of a model; its size in words and bytes."""
    config = PUBLISHED[name]
    if layers is not None:
        config = dataclasses.replace(config, num_layers=layers)
    model = NomicBert(config, rngs=nnx.Rngs(0))
    save_model(model, config, PUBLISHED_EMBEDDINGS[name], None, work / "jax")
    checkpoint = read_checkpoint(work / "jax")
    for layout in LAYOUTS[name]:
        if layout != "jax":
            write_checkpoint(checkpoint, work / layout, layout=layout)
    size = (work / "jax" / "model.safetensors").stat().st_size
    return f"{size / 4e6:.0f} M parameters", size


def measure(
    name: str, layers: int | None, rounds: int, place: str, work: Path
) -> list[Row]:
    """Convert in every direction, in turns."""
    words, size = write_sources(name, layers, work)
    directions = [(a, b) for a in LAYOUTS[name] for b in LAYOUTS[name] if a != b]
    reports: dict[str, list[Report]] = {}
    sides: dict[str, Callable[[], object]] = {}

    def add(side: str, code: str, source: str, layout: str) -> None:
        reports[side] = []
        sides[side] = lambda: reports[side].append(
            convert_in_child(code, work / source, layout, work)
        )

    for source, layout in directions:
        add(f"{source} to {layout}", OURS_CODE, source, layout)
    if name == BESIDE:
        add(THEIRS, THEIRS_CODE, "transformers", "transformers")
    in_turns(sides, rounds)
    timed = {side: found[1:] for side, found in reports.items()}  # the first warms up

    def middle(side: str, what: str) -> float:
        return statistics.median(getattr(report, what) for report in timed[side])

    rows = []
    for source, layout in directions:
        side = f"{source} to {layout}"
        row = Row(
            work=side,
            detail=f"{words}, {place}",
            ours=middle(side, "seconds"),
            unit="s",
            extra={
                "peak memory, GiB": middle(side, "memory"),
                "weights, GiB": size / 2**30,
                "whole process, s": middle(side, "whole"),
            },
        )
        if THEIRS in sides:
            seconds = {
                each: [report.seconds for report in timed[each]]
                for each in (side, THEIRS)
            }
            row = dataclasses.replace(
                row,
                theirs=middle(THEIRS, "seconds"),
                beside=THEIRS,
                ratio=median_ratio(seconds[THEIRS], seconds[side]),
                extra={
                    **row.extra,
                    "theirs: peak memory, GiB": middle(THEIRS, "memory"),
                    "theirs: whole process, s": middle(THEIRS, "whole"),
                },
            )
        rows.append(row)
    return rows


def main() -> None:
    """Measure both models and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=LAYOUTS, default=[*LAYOUTS])
    parser.add_argument(
        "--in-memory", action="store_true", help=f"files in {MEMORY}, not on a disk"
    )
    parser.add_argument("--layers", type=int, help="fewer than published, for a trial")
    options = parser.parse_args()
    folder, place = (MEMORY, "in memory") if options.in_memory else (None, "on a disk")
    given = environment()
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            rows = measure(name, options.layers, options.rounds, place, Path(work))
        record("convert", rows, given)


if __name__ == "__main__":
    main()
