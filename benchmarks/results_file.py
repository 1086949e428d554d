"""Lines of JSON that a benchmark goes on from; the first says what it began with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nomic_jax.config import differing_fields
from nomic_jax.storage import whole_file

RESULTS = "results.jsonl"


def begin(work: Path, now: Mapping[str, Any]) -> Path:
    """Write what is measured with as the first line of the results, or compare it.

    Returns:
        The file of the results.

    Raises:
        ValueError: the folder was begun with something else.
    """
    file = work / RESULTS
    lines = read_results(file)
    if not lines and not (work / "data").exists():
        work.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as results:
            results.write(f"{json.dumps(now)}\n".encode())
        return file
    first = lines[0] if lines else {}
    if first.get("part") != "setting":
        raise ValueError(f"{work} does not say what it was begun with; give another")
    if changed := differing_fields(first, now):
        raise ValueError(
            f"{work} was begun with something else: {'; '.join(changed)}; give another"
        )
    return file


def read_results(file: Path) -> list[dict[str, Any]]:
    """Read what has been measured."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]
