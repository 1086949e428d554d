"""JSON files of a folder, read with a clear line for what is no JSON object."""

import json
from pathlib import Path
from typing import Any

from nomic_jax.checkpoints.problems import CheckpointError


def read_json(path: Path, *, module: str = "") -> dict[str, Any]:
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
