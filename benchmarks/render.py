"""docs/benchmarks.md, made of what was recorded, the goals and notes.md.

    python benchmarks/render.py

No figure is typed by hand. notes.md explains: a section a goal, named as in goals.py,
says what bounds it and what was tried, with figures.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import GOALS, Goal, Mark
from record import RESULTS, Row, read, table, told

PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
NOTES = RESULTS.parent / "notes.md"
MISSING = "not measured"

HEAD = """# Measured speed

Made by `python benchmarks/render.py` of the lines in `benchmarks/results/`, each
written by the run that measured it, and of the explanations in `benchmarks/notes.md`.
Both sides of a ratio were timed in turns in one run; figures are medians. A figure that
nobody has measured is "not measured"; a commit with `+` had changes that were not
committed. [benchmarks/README.md](../benchmarks/README.md) says how to run each.
"""


def machine(environment: Mapping[str, Any]) -> str:
    """Name the machine: its accelerators, or else its processor."""
    devices = environment["devices"]
    kinds = sorted(set(devices) - {"cpu"})
    if kinds:
        return ", ".join(f"{devices.count(kind)} x {kind}" for kind in kinds)
    return f"{environment['processor']}, {environment['cores']} cores"


def newest(
    lines: Iterable[Mapping[str, Any]],
) -> list[tuple[Row, Mapping[str, Any]]]:
    """Return the newest of the rows that say the same of the same, with their lines.

    Args:
        lines: of results, oldest first.
    """
    found = {}
    for line in lines:
        place = machine(line["environment"])
        for row in line["rows"]:
            key = (place, row.work, row.detail, row.unit, row.beside, row.goal)
            found.pop(key, None)  # its place is the newest one's
            found[key] = (row, line)
    return list(found.values())


def value_of(row: Row, mark: Mark) -> float | None:
    """Return the figure of a row that a mark bounds."""
    if mark.figure in ("ratio", "ours"):
        return getattr(row, mark.figure)
    value = row.extra.get(mark.figure)
    return None if isinstance(value, str) else value


def verdict(value: float | None, mark: Mark) -> str:
    """Say whether a mark is met, or by what factor it is missed."""
    if value is None:
        return ""
    factor = mark.factor(value)
    return "met" if factor >= 1 else f"**missed**, {factor:.3g} of the goal"


def is_on(goal: Goal, environment: Mapping[str, Any]) -> bool:
    """Say whether a goal is one of this machine's."""
    return machine_device(environment).startswith(goal.device)


def machine_device(environment: Mapping[str, Any]) -> str:
    """Return the kind of device that does the work."""
    kinds = sorted(set(environment["devices"]) - {"cpu"})
    return kinds[0] if kinds else "cpu"


def goal_rows(name: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write a goal's rows: those of its own machines, then others that answer it."""
    goal = GOALS[name]
    answers = [
        (row, line["environment"], machine(line["environment"]))
        for row, line in newest(lines)
        if row.goal == name
    ]
    own = [answer for answer in answers if is_on(goal, answer[1])]
    written = []
    for mark in goal.marks:
        head = f"| {goal.work} | {mark} |"
        if not own:
            written.append(f"{head} {goal.device or 'any'} | {MISSING} | |")
        for row, _, place in own:
            value = value_of(row, mark)
            shown = MISSING if value is None else mark.form.format(value)
            told = f"{shown} ({row.detail})" if row.detail else shown
            written.append(f"{head} {place} | {told} | {verdict(value, mark)} |")
        for row, environment, place in answers:
            value = value_of(row, mark)
            if is_on(goal, environment) or value is None:
                continue
            told = f"{mark.form.format(value)} ({row.detail})"
            written.append(f"{head} {place} | {told} | not the goal's machine |")
    return written


def missed(name: str, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a row on the goal's machines is short of it."""
    return any("**missed**" in row for row in goal_rows(name, lines))


def read_notes(text: str) -> dict[str, str]:
    """Return the explanations by the name of their goal.

    Raises:
        ValueError: a section is of no goal.
    """
    _, *sections = f"\n{text}".split("\n## ")
    found = {}
    for section in sections:
        name, _, body = section.partition("\n")
        if name.strip() not in GOALS:
            raise ValueError(
                f"notes.md explains {name.strip()!r}, which is no goal of goals.py; "
                f"known are: {', '.join(GOALS)}"
            )
        found[name.strip()] = body.strip()
    return found


def runs(lines: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Write the newest rows of a benchmark, a table for each run they are of."""
    of_run: dict[str, list[Row]] = {}
    environments = {}
    for row, line in newest(lines):
        environment = line["environment"] | {"commit": line["commit"]}
        key = json.dumps(environment, sort_keys=True)
        of_run.setdefault(key, []).append(row)
        environments[key] = environment
    written = []
    for key in sorted(of_run, key=lambda key: environments[key]["date"], reverse=True):
        given = environments[key]
        commit = given["commit"] or "of an unknown commit"
        heading = f"### {machine(given)}, {given['date'][:10]}, {commit}"
        written.append([heading, "", *told(given), "", *table(of_run[key]), ""])
    return written


def render(results: Mapping[str, Sequence[Mapping[str, Any]]], notes: str) -> str:
    """Write the page.

    Args:
        results: the lines of each benchmark, oldest first.
        notes: the text of notes.md.
    """
    everything = sorted(
        (line for lines in results.values() for line in lines),
        key=lambda line: line["date"],
    )
    page = [HEAD, "## Goals", "", "| work | goal | on | measured | |"]
    page.append("|---|---|---|---|---|")
    for name in GOALS:
        page += goal_rows(name, everything)
    page.append("")
    explained = read_notes(notes)
    for name, goal in GOALS.items():
        if name in explained or missed(name, everything):
            text = explained.get(name, "Missed, and not explained yet.")
            page += [f"### {goal.work}", "", text, ""]
    for name, lines in results.items():
        page += [f"## {name}", ""]
        for run in runs(lines):
            page += run
    return "\n".join(page).rstrip() + "\n"


def made(folder: Path = RESULTS, notes: Path = NOTES) -> str:
    """Write the page of a folder of results."""
    results = {file.stem: read(file) for file in sorted(folder.glob("*.jsonl"))}
    return render(results, notes.read_text())


if __name__ == "__main__":
    PAGE.write_text(made())
