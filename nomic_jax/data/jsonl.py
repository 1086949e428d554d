"""Text and pairs in JSON Lines files, plain or gzip, read and written line by line.

Nomic's own shards have this form, `shard-00000.jsonl.gz` with one object a line.
"""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from nomic_jax.config import NOMIC_PROMPTS, nearest
from nomic_jax.data.sources import Pair, PairSource
from nomic_jax.whole_file import whole_file


def read_pairs(
    path: Path,
    *,
    name: str | None = None,
    query_prefix: str = NOMIC_PROMPTS["search_query"],
    document_prefix: str = NOMIC_PROMPTS["search_document"],
    query: str = "query",
    document: str = "document",
    negatives: str = "negatives",
) -> PairSource:
    """Read pairs from a .jsonl or .jsonl.gz file.

    Args:
        path: the file; each line an object, blank lines are skipped.
        name: of the source; the file's own without its endings where not given.
        query_prefix: put before queries.
        document_prefix: put before documents and negatives.
        query: column of the query's text.
        document: column of the text that answers it.
        negatives: column of a list of texts that do not; lines may lack it.

    Raises:
        ValueError: the file holds no pairs, or a line is not as it should be; file and
            line are named.
    """
    path = Path(path)
    pairs = []
    for place, record in _objects(path):
        further = record.get(negatives)
        if further is None:
            further = []
        if not isinstance(further, list):
            raise ValueError(
                f"{place}: column {negatives!r} is {_kind(further)}; "
                "a list of texts is needed"
            )
        pairs.append(
            Pair(
                _column(record, query, place),
                _column(record, document, place),
                tuple(
                    _text(item, f"{negatives}[{i}]", place)
                    for i, item in enumerate(further)
                ),
            )
        )
    if name is None:
        name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return PairSource(name, pairs, query_prefix, document_prefix)


def read_texts(
    path: Path,
    *,
    column: str = "text",
    split: Literal["lines", "paragraphs"] = "lines",
) -> Iterator[str]:
    """Read documents for masked-language modelling, one at a time.

    Args:
        path: .jsonl or .jsonl.gz with one object a line, or .txt or .txt.gz.
        column: of the text in JSON Lines.
        split: a document of a .txt file is a line, or lines up to an empty one.

    Yields:
        Texts that are not blank, in the file's order.

    Raises:
        ValueError: the file holds no text, its ending is unknown, or a line is not as
            it should be; file and line are named.
    """
    path = Path(path)
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending == ".jsonl":
        for place, record in _objects(path):
            yield _column(record, column, place)
        return
    if ending != ".txt":
        raise ValueError(f"{path} ends in neither .jsonl nor .txt, nor these with .gz")
    empty, paragraph = True, []
    for _, line in _lines(path):
        line = line.rstrip()
        if line and split == "lines":
            empty = False
            yield line
        elif line:
            empty = False
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)
    if empty:
        raise ValueError(f"{path} is empty: at least one line of text is needed")


def write_pairs(path: Path, pairs: Iterable[Pair]) -> int:
    """Write pairs with their negatives, as `read_pairs` reads them.

    The file appears when it is complete; until then an older one keeps its place. Equal
    pairs give equal bytes, compressed or not.

    Args:
        path: ends in .jsonl or .jsonl.gz.
        pairs: written in their order.

    Returns:
        The number of pairs written.

    Raises:
        ValueError: there are no pairs, or the ending is another.
    """
    return _write(
        path,
        (
            {"query": pair.query, "document": pair.document}
            | ({"negatives": list(pair.negatives)} if pair.negatives else {})
            for pair in pairs
        ),
    )


def write_texts(path: Path, texts: Iterable[str], *, column: str = "text") -> int:
    """Write documents as `read_texts` reads them, in the manner of `write_pairs`.

    Args:
        path: ends in .jsonl or .jsonl.gz.
        texts: written in their order.
        column: of the text.

    Returns:
        The number of texts written.

    Raises:
        ValueError: there are no texts, or the ending is another.
    """
    return _write(path, ({column: text} for text in texts))


def _write(path: Path, records: Iterable[Mapping[str, str | list[str]]]) -> int:
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path} must end in .jsonl or .jsonl.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with whole_file(path) as raw:
        # Without a name and a time in its header, gzip's bytes depend on the text.
        file = (
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
            if path.suffix == ".gz"
            else contextlib.nullcontext(raw)
        )
        with file as lines:
            for record in records:
                line = json.dumps(record, ensure_ascii=False)
                lines.write(line.encode() + b"\n")
                count += 1
        if not count:
            raise ValueError(f"there is nothing to write to {path}")
    return count


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield each line's place, to begin an error with, and the object it holds."""
    empty = True
    for number, line in _lines(path):
        if not line.strip():
            continue
        empty = False
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at column {error.colno}"
            raise ValueError(f"{place}: not JSON: {reason}") from error
        except (ValueError, RecursionError) as error:  # huge numbers, deep nesting
            raise ValueError(f"{place}: cannot be read as JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: {_kind(record)}; an object is needed")
        yield place, record
    if empty:
        raise ValueError(f"{path} is empty: at least one line with an object is needed")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers, from 1, and lines."""
    offset, number = 0, 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}:{number}: byte {offset + error.start} of the file, "
                        f"0x{line[error.start]:02x}, is not UTF-8"
                    ) from error
                # Editors on Windows begin a file with a mark that JSON does not know.
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                offset += len(line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip after line {number}: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _column(record: Mapping[str, object], column: str, place: str) -> str:
    if column not in record:
        raise ValueError(
            f"{place}: no column {column!r}; {nearest(column, record)}"
            if record
            else f"{place}: no column {column!r}; the object is empty"
        )
    return _text(record[column], column, place)


def _text(value: object, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: column {column!r} is {_kind(value)}, not a text")
    if not value.strip():
        raise ValueError(f"{place}: column {column!r} is blank")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: column {column!r} holds half a character, "
            f"\\u{ord(value[error.start]):04x} without its other half"
        ) from error
    return value


def _kind(value: object) -> str:
    """Name a value as JSON does."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
