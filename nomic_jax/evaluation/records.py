"""Files that an evaluation reads, with file and line for every error.

A file is JSON Lines, plain or gzip, or Parquet. A folder's `task.json` holds what is
particular to its task. The libraries of the `eval` extra are imported when a
measurement asks for them.
"""

import dataclasses
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from types import ModuleType
from typing import Any

from nomic_jax.config import did_you_mean
from nomic_jax.data.sources.jsonl import parse_object
from nomic_jax.data.sources.lines import read_lines
from nomic_jax.data.sources.source import Row, kind_of, source_name, text_of
from nomic_jax.data.sources.tables import ParquetRows
from nomic_jax.storage import exists, join, read_json

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
SETTINGS = "task.json"
SPLITS = ("train", "dev", "val", "valid", "validation", "test")


def read_records(place: str) -> Iterator[tuple[str, Row]]:
    """Yield each record's place and the record itself.

    Raises:
        ValueError: the file is not there, is empty or cannot be read, or a line holds
            no object; file and line are named.
    """
    if not place.endswith(ENDINGS):
        raise ValueError(f"{place} ends in none of {', '.join(ENDINGS)}")
    if not exists(place):
        raise ValueError(f"{place} is not there")
    if place.endswith(".parquet"):
        rows = ParquetRows.open(place)
        for number, row in enumerate(rows.rows(0, len(rows))):
            yield f"{place}, row {number}", row
        return
    line = None
    for line in read_lines(place):
        where = f"{place}:{line.number}"
        yield where, parse_object(line.text, where)
    if line is None:
        raise ValueError(f"{place} is empty: at least one record is needed")


def task_name(place: str) -> str:
    """Name a task after its file, and after the folder where that is only a split."""
    name = source_name(place)
    if name not in SPLITS:
        return name
    folder = source_name(place.rpartition("/")[0])
    return folder if name == "test" else f"{folder}:{name}"


def folder_and_part(place: str) -> tuple[str, str | None]:
    """Take FOLDER:PART apart; the part, a split or a data set, may be unsaid."""
    found = re.fullmatch(r"(.+):([^/:]+)", place)
    folder, part = (found[1], found[2]) if found else (place, None)
    return folder.rstrip("/"), part


def add_once(found: MutableMapping[str, str], name: str, text: str, place: str) -> None:
    """Add a text by its id.

    Raises:
        ValueError: the id is there already.
    """
    if name in found:
        raise ValueError(f"{place}: the id {name!r} is there a second time")
    found[name] = text


def file_in(folder: str, name: str, needed: str) -> str:
    """Return the place of a folder's file, whichever known ending it has.

    Args:
        folder: where it is.
        name: without the ending.
        needed: what the folder has to hold, to end an error with.

    Raises:
        ValueError: the folder or the file is not there.
    """
    if not exists(folder):
        raise ValueError(f"{folder} is not there; {needed}")
    for ending in ENDINGS:
        if exists(place := join(folder, name + ending)):
            return place
    raise ValueError(f"{folder} holds no {name}.jsonl; {needed}")


def one_text(row: Row, columns: Sequence[str], place: str) -> str:
    """Return the text of the first of several columns that the row has.

    Raises:
        ValueError: it has none of them, or no text or a blank one is there.
    """
    there = next((column for column in columns if column in row), columns[0])
    return text_of(row, there, place)


def texts_in(row: Row, column: str, place: str) -> tuple[str, ...]:
    """Return a column's list of texts, at least one.

    Raises:
        ValueError: there is no such column, or something else is in it.
    """
    values = list_in(row, column, place)
    if not values:
        raise ValueError(f"{place}: column {column!r} is an empty list; give a text")
    return tuple(text_of({column: value}, column, place) for value in values)


def list_in(row: Row, column: str, place: str) -> list[Any]:
    """Return a column's list, maybe empty.

    Raises:
        ValueError: there is no such column, or something else is in it.
    """
    value = _value(row, column, place)
    if isinstance(value, list):
        return value
    raise ValueError(f"{place}: column {column!r} is {kind_of(value)}; give a list")


def label_in(row: Row, column: str, place: str) -> str:
    """Return a column's label: a text, a whole number or a boolean, as a text.

    Raises:
        ValueError: there is no such column, or something else is in it.
    """
    value = _value(row, column, place)
    if isinstance(value, bool | int):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError(
        f"{place}: column {column!r} is {kind_of(value)}; a label is a text that is "
        "not blank, or a whole number"
    )


def id_in(row: Row, column: str, place: str) -> str:
    """Return a column's id, a text or a whole number, as a text.

    Raises:
        ValueError: there is no such column, or something else is in it.
    """
    value = _value(row, column, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(row, column, place)


def read_settings(folder: str, known: Mapping[str, object]) -> dict[str, Any]:
    """Return what a folder's `task.json` sets over the values given here.

    Raises:
        ValueError: it sets something else, or to a value of another kind.
    """
    place = join(folder, SETTINGS)
    if not exists(place):
        return dict(known)
    given = read_json(place)
    if not isinstance(given, dict):
        raise ValueError(f"{place} holds {kind_of(given)}; an object is needed")
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"{place}: unknown field {name!r}: {did_you_mean(name, known)}"
            )
        if type(value) is not type(known[name]):
            needed = kind_of(known[name])
            raise ValueError(f"{place}: {name} is {kind_of(value)}; {needed} is needed")
    return {**known, **given}


def at_least_two_classes(labels: Sequence[str], place: str) -> None:
    """Refuse labels that leave nothing to tell apart.

    Raises:
        ValueError: all are the same.
    """
    if len(set(labels)) < 2:
        raise ValueError(
            f"{place}: all {len(labels)} labels are {labels[0]!r}; at least two "
            "classes are needed"
        )


def _value(row: Row, column: str, place: str) -> Any:
    if column not in row:
        hint = did_you_mean(column, row) if row else "the row is empty"
        raise ValueError(f"{place}: no column {column!r}; {hint}")
    return row[column]


@dataclasses.dataclass(frozen=True)
class Side:
    """Texts that are embedded alike."""

    texts: Sequence[str]
    prompt: str  # name of a task's prompt in Nomic's models
    calibrates: bool = True  # its embeddings give the ranges of int8 codes
    # MTEB's type and role, as `Reranking-query`: a model may have a prompt of its own
    task_type: str | None = None

    @property
    def prompt_name(self) -> str:
        """Its prompt's name among those that `prompts.completed` returns."""
        return self.task_type or self.prompt


def numbered(texts: Iterable[str]) -> Mapping[str, int]:
    """Number texts by first appearance, so that equal ones are embedded once."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def extra(name: str) -> ModuleType:
    """Import a library that only evaluation needs.

    Raises:
        ValueError: it is not installed; the line says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this evaluation needs {error.name}, which is not installed; "
            'run pip install "nomic-jax[eval]"'
        ) from error
