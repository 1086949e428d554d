"""Data of contrastors: its YAML lists, and shards of pairs as Nomic publishes them.

An entry of the YAML has a name, a bucket with braces for the shards' numbers, an
objective with its columns, and prefixes, written without the ": " that follows them in
a text. A folder of shards holds `shard-00000.jsonl.gz` and so on, `counts.json` with
the lines of each, and `offsets.json.gz`. The offsets are not read: they are right for
ASCII alone, and gzip cannot start at them; `lines.py` finds places that hold for any
text.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.config import did_you_mean
from nomic_jax.data.sources.files import (
    fingerprint_of,
    open_file,
    versions_of,
    whole_place,
)
from nomic_jax.data.sources.jsonl import parse_object
from nomic_jax.data.sources.lines import LineIndex, read_lines
from nomic_jax.data.sources.pairs import PairColumns
from nomic_jax.data.sources.source import Row, Source, check_name, parts
from nomic_jax.storage import exists, is_remote, join, name_of, read_json


@dataclasses.dataclass(frozen=True)
class ShardedPairs:
    """Rows of several shards in their order; each shard is checked as it is read."""

    name: str
    shards: tuple[str, ...]
    counts: tuple[int, ...]  # rows of each shard
    objective: str  # "paired", "triplet" or "self"; "" is not checked
    columns: tuple[str, ...]  # that each line must list under that objective
    fingerprint: str

    @classmethod
    def open(
        cls,
        shards: Sequence[str],
        name: str,
        *,
        objective: str = "",
        columns: Sequence[str] = (),
    ) -> "ShardedPairs":
        """Take lengths from counts.json; without one, read and index the shards.

        Args:
            shards: of one folder, in their order, local or at fsspec URLs.
            name: of the source.
            objective: that `metadata.objective` of each line must list.
            columns: that it must list there, in this order.

        Raises:
            ValueError: a shard is missing or has no count, or there is no row.
        """
        places = [whole_place(shard) for shard in shards]
        versions = versions_of(places)
        missing = [place for place in places if versions[place] is None]
        if missing or not places:
            raise ValueError(
                f"source {name!r}: {len(missing)} of {len(places)} shards are missing, "
                f"the first is {next(iter(missing), None)}"
            )
        counts_place = join(places[0].rpartition("/")[0], "counts.json")
        if exists(counts_place):
            content = read_json(counts_place)
            counts = [_count(place, content, counts_place) for place in places]
        else:
            counts = [LineIndex.of(place).count for place in places]
        if not sum(counts):
            raise ValueError(f"source {name!r} is empty: {len(places)} shards, no rows")
        digest = fingerprint_of(versions, objective, list(columns))
        return cls(
            *(check_name(name), tuple(places), tuple(counts)),
            *(objective, tuple(columns), digest),
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(self.counts)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows of a range.

        Raises:
            ValueError: a shard holds more or fewer rows than its count, a line holds
                no object, or its metadata does not list the columns; shard and line
                are named.
        """
        for shard, first, last in parts(self.counts, start, stop):
            yield from self._shard_rows(shard, first, last)

    def place(self, row: int) -> str:
        """Name a row by its shard and line, from 1."""
        for shard, first, _ in parts(self.counts, row, row + 1):
            index = LineIndex.of(self.shards[shard])
            return f"{index.place}:{index.number(first)}"
        raise ValueError(f"source {self.name!r} has {len(self)} rows, none is {row}")

    def _shard_rows(self, shard: int, first: int, last: int) -> Iterator[Row]:
        place, count = self.shards[shard], self.counts[shard]
        if first:
            index = LineIndex.of(place)
            if index.count != count:
                raise _disagreement(place, index.count, count)
            lines = index.read(first, last)
        else:
            lines = read_lines(place)  # a shard read whole needs no index
        row = first
        for line in lines:
            if row == last:
                if last == count:
                    raise _disagreement(place, count + 1 + sum(1 for _ in lines), count)
                return
            line_place = f"{place}:{line.number}"
            values = parse_object(line.text, line_place)
            self._check_objective(values, line_place)
            yield values
            row += 1
        if row < last:
            raise _disagreement(place, row, count)

    def _check_objective(self, row: Row, place: str) -> None:
        if not self.objective:
            return
        listed: Any = row
        for key in ("metadata", "objective", self.objective):
            listed = listed.get(key) if isinstance(listed, Mapping) else None
        wanted = list(self.columns)
        # One column may stand without brackets of its own.
        if wanted not in (listed or ()) and not (len(wanted) == 1 and listed == wanted):
            raise ValueError(
                f"{place}: metadata.objective lists {listed} as {self.objective!r}; "
                f"{wanted} is asked for"
            )


def _count(place: str, content: Any, counts_place: str) -> int:
    """Return a shard's number of rows by either form of counts.json."""
    if isinstance(content, Mapping):
        content = content.get("count_per_file", content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{counts_place} holds no object of numbers by file")
    # Copies lie in folders of other names: the file's own name is what remains.
    found = {key: n for key, n in content.items() if name_of(key) == name_of(place)}
    if len(found) > 1:
        found = {key: n for key, n in found.items() if place.endswith(key)}
    if len(found) != 1:
        raise ValueError(
            f"{counts_place} has {len(content)} counts, {len(found)} of them for "
            f"{place}; one is needed"
        )
    (count,) = found.values()
    if type(count) is not int or count < 0:
        raise ValueError(f"{counts_place}: the count of {place} is {count!r}")
    return count


def _disagreement(place: str, found: int, count: int) -> ValueError:
    return ValueError(
        f"{place} holds {found} rows, its counts.json says {count}: fetch the shard "
        "again, or correct the count"
    )


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
            f"{where}: unknown objective {kind!r}; "
            f"{did_you_mean(str(kind), NUM_COLUMNS)}"
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
                f"{where}: unknown key {key!r}; {did_you_mean(str(key), known)}"
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
