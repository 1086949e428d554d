"""Shards of pairs as Nomic publishes them: gzipped JSON Lines with counts beside them.

A folder holds `shard-00000.jsonl.gz` and so on, `counts.json` with the lines of each,
and `offsets.json.gz`. The offsets are not read: they are right for ASCII alone, and
gzip cannot start at them; `lines.py` finds places that hold for any text.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nomic_jax.sources.files import fingerprint_of, versions_of, whole_place
from nomic_jax.sources.jsonl import parse_object
from nomic_jax.sources.lines import LineIndex, read_lines
from nomic_jax.sources.source import Row, check_name, parts
from nomic_jax.storage import exists, join, name_of, read_json


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
