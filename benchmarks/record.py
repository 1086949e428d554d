"""A benchmark's rows: printed beside the other side, and kept as a line of JSON.

A script takes its environment once, first, and records what it has measured as soon as
it has it, so that nothing is lost when it is cut; lines of one environment are one run.
"""

import dataclasses
import datetime
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import GOALS

RESULTS = Path(__file__).parent / "results"
FOLDER = "NOMIC_JAX_RESULTS"  # another folder than that, as for a trial

Figure = float | str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure beside another; what was not measured is None, never a guess."""

    # What is done, as "encode", and to what, as "512 tokens": of the rows that say the
    # same here, in the unit, the side beside and the goal, the newest one counts.
    work: str
    detail: str
    ours: float | None
    unit: str  # of ours and theirs, as "texts/s"
    theirs: float | None = None
    beside: str | None = None  # who the other side is
    # By median_ratio. Above 1 is faster than the other side, unless the goal's words
    # or the work say otherwise, as of a cost.
    ratio: float | None = None
    goal: str | None = None  # the name of the goal that it answers
    note: str = ""
    extra: Mapping[str, Figure] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a goal that nobody set.

        Raises:
            ValueError: with the nearest names.
        """
        if self.goal is not None and self.goal not in GOALS:
            near = difflib.get_close_matches(self.goal, GOALS, cutoff=0) or GOALS
            raise ValueError(
                f"{self.goal!r} is no goal of goals.py; nearest: {', '.join(near)}"
            )


def record(name: str, rows: Sequence[Row], environment: Mapping[str, Any]) -> None:
    """Print rows, once with what they were measured with, and append them to a file.

    Args:
        name: of the benchmark; the file is NAME.jsonl of benchmarks/results, or of the
            folder that NOMIC_JAX_RESULTS names.
        rows: what was measured since the last call.
        environment: as `environment()` gave it when the script began.

    Raises:
        ValueError: a figure is not finite; nothing is written.
    """
    given = dict(environment)
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": given.pop("commit"),
        "environment": given,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    text = json.dumps(line, allow_nan=False, ensure_ascii=False)
    folder = Path(os.environ.get(FOLDER) or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    before = file.read_text().splitlines()[-1:] if file.exists() else []
    goes_on = any(json.loads(each)["environment"] == given for each in before)
    # One write at the end of the file: a line is there whole or not at all, whoever
    # else appends.
    place = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(place, f"{text}\n".encode())
        os.fsync(place)
    finally:
        os.close(place)
    print(*([] if goes_on else [*told(environment), ""]), *table(rows), sep="\n")
    print(f"\nappended to {file}\n", flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """Read a file of results, oldest first, with rows as `Row`s."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        line | {"rows": [Row(**row) for row in line["rows"]]}
        for line in sorted(lines, key=lambda line: line["date"])
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Write rows as Markdown."""
    lines = [
        "| work | | nomic_jax | beside it | ratio | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs = figure(row.theirs)
        if row.theirs is not None:
            theirs = f"{theirs} {row.unit}, {row.beside}"
        elif row.beside is None:
            theirs = ""
        ours = figure(row.ours) + (f" {row.unit}" if row.ours is not None else "")
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        extra = [f"{name} {figure(value)}" for name, value in row.extra.items()]
        further = "; ".join(part for part in (*extra, row.note) if part)
        cells = (row.work, row.detail, ours, theirs, ratio, further)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def figure(value: Figure) -> str:
    """Write a figure with three digits, or say that it was not measured."""
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def told(environment: Mapping[str, Any]) -> list[str]:
    """Write an environment in a few lines."""
    devices = environment["devices"]
    kinds = {kind: devices.count(kind) for kind in devices}
    on = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    packages = ", ".join(f"{n} {v}" for n, v in environment["packages"].items())
    rates = ", ".join(
        f"{side} {rate['gflops']:,.0f} GFLOP/s ({rate['size']} x {rate['size']} "
        f"{rate['dtype']})"
        for side, rate in environment["matmul"].items()
    )
    threads = environment.get("torch_threads")
    with_torch = "" if threads is None else f", {threads} threads of PyTorch"
    return [
        f"{environment['processor']}, {environment['cores']} cores{with_torch}, "
        f"{environment['memory_gib']:.0f} GiB, load {environment['load']:.1f}; {on}; "
        f"{environment['date']}.",
        f"Python {environment['python']}, {packages}.",
        f"Products of matrices: {rates}.",
    ]
