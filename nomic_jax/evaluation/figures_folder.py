"""What an evaluation leaves in its folder, and how it goes on where it was stopped.

DIR/results.json holds the model, the options, and for each task, length, dimension and
precision all metrics; DIR/results.md its tables; the plots are drawn of it. Every task
at every length is written as soon as it is measured.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from nomic_jax.config import EmbeddingConfig
from nomic_jax.evaluation.kinds import KINDS, Task
from nomic_jax.evaluation.measure import Figures
from nomic_jax.evaluation.measured import Measured, Results
from nomic_jax.evaluation.tables import tables
from nomic_jax.fields import differing_fields
from nomic_jax.storage import exists, join, read_bytes, read_json, write_bytes

RESULTS, TABLES = "results.json", "results.md"
PLACES = ("source", "place")  # which may change: digests say what lies there


def described(task: Task, config: EmbeddingConfig) -> dict[str, Any]:
    """Say of a task what it is, with a digest of its content.

    Args:
        task: as `open_tasks` reads it.
        config: of an embedder that knows the prompts of all tasks.
    """
    content = hashlib.blake2b(digest_size=16)
    for piece in _pieces(task.data):
        content.update(piece.encode())
    known = config.prompts
    return {
        "kind": task.kind,
        "place": task.place,
        "main": task.main,
        "counts": dict(task.counts),
        "prefixes": [known[side.prompt_name] for side in task.sides],
        "unit_length": KINDS[task.kind].unit_length,
        "digest": content.hexdigest(),
    }


def _pieces(value: Any) -> Iterator[str]:
    """Write a task's data in pieces: a corpus may fill the memory, once."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield field.name
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _pieces(list(value.items()))
    elif isinstance(value, Collection) and not isinstance(value, str):
        yield f"[{len(value)}"
        for each in sorted(value) if isinstance(value, frozenset) else value:
            yield from _pieces(each)
    else:
        yield f",{value!r}"


def resumed(results: Results, folder: str) -> Results:
    """Add what a folder holds of an earlier run of the same model and options.

    Raises:
        ValueError: it holds another model's, other options' or another task's figures
            under the same name; the fields that differ are named.
    """
    place = join(folder, RESULTS)
    if not exists(place):
        return results
    earlier = _read(place)
    known = {
        name: earlier.tasks.get(name, task) for name, task in results.tasks.items()
    }
    differing = differing_fields(
        _compared(earlier.model, earlier.options, known),
        _compared(results.model, results.options, results.tasks),
    )
    if differing:
        raise ValueError(
            f"{place} is of another evaluation: {'; '.join(differing)}; give another "
            "--out, or the same model and options"
        )
    return dataclasses.replace(
        results,
        tasks={**earlier.tasks, **results.tasks},
        measured=earlier.measured,
    )


def _compared(
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    tasks: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    def placeless(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in PLACES}

    return {
        "model": placeless(model),
        "options": options,
        "tasks": {name: placeless(task) for name, task in tasks.items()},
    }


def write(results: Results, folder: str) -> None:
    """Write the figures and their tables, unless they are there."""
    values = dataclasses.asdict(results)
    for name, text in (
        (TABLES, tables(results)),  # first: what is in the other is not measured again
        (RESULTS, json.dumps(values, indent=2, ensure_ascii=False)),
    ):
        write_changed(join(folder, name), (text + "\n").encode())


def write_changed(place: str, content: bytes) -> None:
    """Write a file, unless it holds just that."""
    if not exists(place) or read_bytes(place) != content:
        write_bytes(place, content)


def _read(place: str) -> Results:
    values = read_json(place)
    try:
        measured = tuple(
            Measured(
                m["task"],
                m["length"],
                m["seconds"],
                tuple(Figures(**each) for each in m["figures"]),
                m["versions"],
            )
            for m in values.pop("measured")
        )
        return Results(**values, measured=measured)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{place} is no file of results: {error!r}; give another --out"
        ) from error
