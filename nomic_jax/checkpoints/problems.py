"""Problems of a checkpoint, collected and reported in one error, layers grouped.

A JSON file of a folder is read here too, with a clear error where it is not an object.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"(?:(?<=\blayers\.)|(?<=\blayer\.))\d+(?=\.)")


class CheckpointError(ValueError):
    """A folder that is not the whole, unambiguous checkpoint of a known model."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its kind, the tensor or config key, and a remark."""

    kind: str  # missing, unused, twice, shape, dtype, value, config, file
    name: str
    note: str = ""


def listing(title: str, problems: Sequence[Problem]) -> str:
    """Put problems under a title, one line each; the same of several layers is one.

    `layers.0.x` to `layers.11.x` become `layers.{0..11}.x`.
    """
    layers: dict[Problem, list[int]] = {}
    for problem in problems:
        found = _NUMBER.search(problem.name)
        key = dataclasses.replace(problem, name=_NUMBER.sub("{}", problem.name))
        numbers = layers.setdefault(key, [])
        if found:
            numbers.append(int(found[0]))
    lines = [title]
    for problem, numbers in layers.items():
        name = problem.name.replace("{}", ranges(numbers)) if numbers else problem.name
        lines.append(f"  {problem.kind:8} {name}  {problem.note}".rstrip())
    return "\n".join(lines)


def ranges(numbers: Iterable[int]) -> str:
    """Write `3` for one number and `{0..4,7}` for several."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    text = ",".join(parts)
    return text if text.isdigit() else "{" + text + "}"


def read_folder_json(path: Path, *, module: str = "") -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: of the file.
        module: the part of a model folder that the file's own folder is, if it is one.

    Raises:
        CheckpointError: there is no such file, or something else is in it.
    """
    if not path.is_file():
        lacks = f"the model's {module} is missing or not whole"
        why = lacks if module else "it is not a model folder"
        raise CheckpointError(f"{path.parent} holds no {path.name}: {why}")
    values = _parse(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a file that holds a list of JSON objects.

    Raises:
        CheckpointError: something else is in it.
    """
    values = _parse(path)
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise CheckpointError(f"{path} holds no list of JSON objects")
    return values


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
