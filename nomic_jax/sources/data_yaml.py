"""Data YAMLs of contrastors: shards to train on, with their columns and prefixes.

An entry has a name, a bucket with braces for the shards' numbers, an objective with its
columns, and prefixes, written without the ": " that follows them in a text.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nomic_jax.fields import nearest
from nomic_jax.sources.files import open_file, whole_place
from nomic_jax.sources.pairs import PairColumns
from nomic_jax.sources.shards import ShardedPairs
from nomic_jax.sources.source import Source, check_name
from nomic_jax.storage import is_remote, join

KEYS = ("name", "bucket", "objective", "query_prefix", "document_prefix")
KEYS += ("query_only", "weight", "kd_loss")
NUM_COLUMNS = {"self": 1, "paired": 2, "triplet": 3}  # by objective


@dataclasses.dataclass(frozen=True)
class NamedPairs:
    """A source, and how its rows become pairs of texts."""

    source: Source
    columns: PairColumns
    query_prefix: str  # put before the text as it stands: "search_query: "
    document_prefix: str
    query_only: bool = False  # the file asks for documents without a prefix


def read_data_yaml(url: str | Path) -> tuple[NamedPairs, ...]:
    """Open the sources of a data YAML, without reading their shards.

    Where an entry has no `document_prefix` its documents have the queries'; where it
    has neither, texts stand alone. A text of the objective `self` is a pair with
    itself, which dropout tells apart (Gao et al. 2021, SimCSE, arXiv:2104.08821).
    `weight` is not used, as in contrastors; `kd_loss: true` is refused.

    Args:
        url: of the file. A bucket that is a relative path is taken from its folder.

    Returns:
        One entry for each of the file, in its order.

    Raises:
        ValueError: the file is not as it should be, which entry and key being named,
            or a shard is missing.
    """
    place = whole_place(url)
    entries = _entries(place)
    names = [entry.get("name") for entry in entries]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{place}: two entries have the name {name!r}")
    return tuple(
        _open(entry, f"{place}, entry {number} ({entry.get('name')})", place)
        for number, entry in enumerate(entries)
    )


def _entries(place: str) -> list[Mapping[str, Any]]:
    import yaml

    try:
        with open_file(place) as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place} is not YAML: {reason}") from error
    if isinstance(content, Mapping):
        _check_keys(content, ("datasets",), place)
        content = content["datasets"] if content else None
    if not isinstance(content, list) or not content:
        raise ValueError(f"{place}: a list of data sets under `datasets` is needed")
    for number, entry in enumerate(content):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{place}, entry {number}: keys and values are needed")
    return content


def _open(entry: Mapping[str, Any], where: str, place: str) -> NamedPairs:
    import braceexpand

    _check_keys(entry, KEYS, where)
    name, bucket = (_text(entry, key, where) for key in ("name", "bucket"))
    objective, columns = _objective(entry, where)
    query_only = entry.get("query_only", False)
    if not isinstance(query_only, bool):
        raise ValueError(f"{where}: query_only is {query_only!r}, not true or false")
    if entry.get("kd_loss"):
        raise ValueError(
            f"{where}: kd_loss asks for distillation from scores, which there is not; "
            "take the key out to train on the pairs"
        )
    if not is_remote(bucket) and not bucket.startswith("/"):
        bucket = join(place.rpartition("/")[0], bucket)
    try:
        shards = list(braceexpand.braceexpand(bucket))
        source = ShardedPairs.open(
            shards, check_name(name), objective=objective, columns=columns
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    query_prefix = _prefix(entry, "query_prefix", where, "")
    return NamedPairs(
        source,
        PairColumns(
            query=columns[0],
            document=columns[min(1, len(columns) - 1)],
            negatives=columns[2] if objective == "triplet" else None,
        ),
        query_prefix,
        _prefix(entry, "document_prefix", where, query_prefix),
        query_only,
    )


def _objective(entry: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    objective = entry.get("objective")
    if not isinstance(objective, Mapping):
        raise ValueError(f"{where}: an objective with type and columns is needed")
    _check_keys(objective, ("type", "columns"), f"{where}, objective")
    kind, columns = objective.get("type"), objective.get("columns")
    if kind not in NUM_COLUMNS:
        raise ValueError(
            f"{where}: unknown objective {kind!r}; {nearest(str(kind), NUM_COLUMNS)}"
        )
    if (
        not isinstance(columns, list)
        or len(columns) != NUM_COLUMNS[kind]
        or not all(isinstance(column, str) for column in columns)
    ):
        raise ValueError(
            f"{where}: columns are {columns}; {kind!r} needs a list of "
            f"{NUM_COLUMNS[kind]}"
        )
    return kind, columns


def _check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}; {nearest(str(key), known)}"
            )


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} is {value!r}; a text is needed")
    return value


def _prefix(entry: Mapping[str, Any], key: str, where: str, default: str) -> str:
    if not entry.get(key):
        return default
    return f"{_text(entry, key, where)}: "
