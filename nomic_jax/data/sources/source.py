"""A source: texts that belong together, of which each batch holds one kind only.

Nomic Embed draws every batch from a single source, so that the negatives of a batch
cannot be told apart by where they come from (arXiv:2402.01613, section 4.2).
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from nomic_jax.config import did_you_mean

Row: TypeAlias = Mapping[str, object]  # columns by name, as a file holds them


@runtime_checkable
class Source(Protocol):
    """Rows in a fixed order; each source can be sent to another process.

    Reading is by ranges: random access is the business of the token store that is made
    from a source.
    """

    @property
    def name(self) -> str:
        """What batches, metrics and folders call it: letters, digits, - _ and dots."""
        ...

    @property
    def fingerprint(self) -> str:
        """What changes when the content does: of files, places, sizes and times."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows of a range, in their order.

        Raises:
            ValueError: a row cannot be read; file and line are named.
        """
        ...

    def place(self, row: int) -> str:
        """Name a row for an error to begin with: `reviews.jsonl:17`."""
        ...


def source_name(place: str | Path) -> str:
    """Return a name for what is at a place: its last part without known endings.

    The files that match a pattern are called after their folder.
    """
    for part in reversed(re.split(r"[/\\]", str(place))):
        name = re.sub(r"(\.(jsonl|txt|parquet))?(\.gz)?$", "", part)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
        if name and not re.search(r"[*?\[{]", part):
            return name
    return "source"


def check_name(name: str) -> str:
    """Return a source's name if a folder can have it on every system.

    Raises:
        ValueError: it holds anything but letters of ASCII, digits, - _ and dots, or
            begins with - or a dot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"the name {name!r} of a source cannot name a folder: use the letters A to "
            "Z and a to z, digits, - _ and dots, and begin with none of - and ."
        )
    return name


def check_distinct(names: Sequence[str]) -> None:
    """Refuse sources of one name, whose folders would be the same.

    Raises:
        ValueError: with the name.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} sources are named {name!r}: each needs a name of "
                "its own; rename a file"
            )


def parts(
    sizes: Sequence[int], start: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """Split a range of rows over parts that follow one another.

    Args:
        sizes: of the parts, in rows.
        start: of the range, over all parts.
        stop: of the range; what is beyond the last part is left out.

    Yields:
        The number of each part that is touched, and the rows of it.
    """
    before = 0
    for part, size in enumerate(sizes):
        first, last = max(start - before, 0), min(stop - before, size)
        if first < last:
            yield part, first, last
        before += size


def stable_hash(text: str, *, seed: int = 0) -> int:
    """Hash a text to 64 bits, the same in every process and on every machine."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=salt)
    return int.from_bytes(digest.digest(), "big")


@dataclasses.dataclass(frozen=True)
class Place:
    """A row's place, found when it is printed: finding it may take reading."""

    source: Source
    row: int

    def __str__(self) -> str:
        """Ask the source."""
        return self.source.place(self.row)


def text_of(
    row: Row, column: str, place: str | Place, *, allow_blank: bool = False
) -> str:
    """Return the text in a row's column; with `allow_blank` null is the empty text.

    Raises:
        ValueError: there is no such column, or it holds no text; begins with `place`.
    """
    if column not in row:
        hint = did_you_mean(column, row) if row else "the row is empty"
        raise ValueError(f"{place}: no column {column!r}; {hint}")
    return check_text(row[column], column, place, allow_blank=allow_blank)


def check_text(
    value: object, column: str, place: str | Place, *, allow_blank: bool = False
) -> str:
    """Return a column's value if it is a text that can be tokenised.

    With `allow_blank` it may be blank, and null is the empty text.

    Raises:
        ValueError: it is no text, blank, or holds half a character.
    """
    if value is None and allow_blank:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: column {column!r} is {kind_of(value)}, not a text")
    if not value.strip() and not allow_blank:
        raise ValueError(f"{place}: column {column!r} is blank")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: column {column!r} holds half a character, "
            f"\\u{ord(value[error.start]):04x} without its other half"
        ) from error
    return value


def kind_of(value: object) -> str:
    """Name a value's kind as JSON does."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a text", list: "a list", dict: "an object"}
    names |= {int: "a number", float: "a number"}
    return names.get(type(value), f"of type {type(value).__name__}")
