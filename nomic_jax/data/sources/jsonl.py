"""Texts and pairs in JSON Lines files, plain or gzip, and texts in plain files.

One object a line; blank lines are skipped. Nomic's own shards have this form. Plain
text is split into lines or paragraphs.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nomic_jax.config import NOMIC_PROMPTS
from nomic_jax.data.sources.lines import IndexedFiles, Split, read_lines
from nomic_jax.data.sources.pairs import Pair, PairColumns, PairSource
from nomic_jax.data.sources.source import Row, check_name, kind_of, source_name, text_of
from nomic_jax.storage import whole_file


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """Rows of one or several JSON Lines files, in the files' order."""

    name: str
    files: IndexedFiles

    @classmethod
    def open(cls, url: str | Path, name: str | None = None) -> "JsonLines":
        """Index a file, or all that match a pattern; later openings find the index.

        Args:
            url: .jsonl or .jsonl.gz, local or at an fsspec URL, or a pattern such as
                `dumps/*.jsonl.gz`, whose files are read in the order of their names.
            name: of the source; the file's own without its endings where not given.

        Raises:
            ValueError: a file holds no row, cannot be read, is not UTF-8, or its gzip
                is broken or cut; file and line are named.
        """
        return cls(check_name(name or source_name(url)), IndexedFiles.of(url))

    @property
    def fingerprint(self) -> str:
        """Digest of the files' places, sizes and times."""
        return self.files.fingerprint

    def __len__(self) -> int:
        """Return the number of lines that are not blank."""
        return sum(self.files.counts)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the objects of a range.

        Raises:
            ValueError: a line holds no object; file and line are named.
        """
        for place, text in self.files.read(start, stop):
            yield parse_object(text, place)

    def place(self, row: int) -> str:
        """Name a row by its file and line, from 1."""
        return self.files.place(row)


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
    columns = PairColumns(query, document, negatives)
    pairs = [columns.pair(row, place) for place, row in _objects(path)]
    if name is None:
        name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return PairSource(name, pairs, query_prefix, document_prefix)


def read_texts(
    path: Path, *, column: str = "text", split: Split = "lines"
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
        for place, row in _objects(path):
            yield text_of(row, column, place)
        return
    if ending != ".txt":
        raise ValueError(f"{path} ends in neither .jsonl nor .txt, nor these with .gz")
    line = None
    for line in read_lines(path, split=split):
        yield line.text
    if line is None:
        raise ValueError(f"{path} is empty: at least one line of text is needed")


def parse_object(line: str, place: str) -> Row:
    """Parse a line of JSON Lines.

    Raises:
        ValueError: it holds no object; begins with `place`.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{place}: not JSON: {reason}") from error
    except (ValueError, RecursionError) as error:  # huge numbers, deep nesting
        raise ValueError(f"{place}: cannot be read as JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {kind_of(row)}; an object is needed")
    return row


def _objects(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each line's place, to begin an error with, and the object it holds."""
    line = None
    for line in read_lines(path):
        place = f"{path}:{line.number}"
        yield place, parse_object(line.text, place)
    if line is None:
        raise ValueError(f"{path} is empty: at least one line with an object is needed")


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


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Documents in memory; rows have the column `text`."""

    name: str
    texts: Sequence[str]

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """Digest of the documents."""
        digest = hashlib.blake2b(digest_size=16)
        for text in self.texts:
            content = text.encode()
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield documents as a file holds them."""
        for text in self.texts[start:stop]:
            yield {"text": text}

    def place(self, row: int) -> str:
        """Name a document, for an error to begin with."""
        return f"source {self.name!r}, text {row}"


@dataclasses.dataclass(frozen=True)
class TextLines:
    """Documents of one or several text files; rows have the column `text`."""

    name: str
    files: IndexedFiles

    @classmethod
    def open(
        cls, url: str | Path, name: str | None = None, *, split: Split = "lines"
    ) -> "TextLines":
        """Index a file, or all that match a pattern; later openings find the index.

        Args:
            url: .txt or .txt.gz, local or at an fsspec URL, or a pattern.
            name: of the source; the file's own without its endings where not given.
            split: a document is a line, or the lines up to a blank one.

        Raises:
            ValueError: a file holds no text, cannot be read, is not UTF-8, or its gzip
                is broken or cut; file and line are named.
        """
        files = IndexedFiles.of(url, split=split)
        return cls(check_name(name or source_name(url)), files)

    @property
    def fingerprint(self) -> str:
        """Digest of the files' places, sizes and times, and of how they are split."""
        return self.files.fingerprint

    def __len__(self) -> int:
        """Return the number of documents."""
        return sum(self.files.counts)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the documents of a range."""
        for _, text in self.files.read(start, stop):
            yield {"text": text}

    def place(self, row: int) -> str:
        """Name a document by its file and first line, from 1."""
        return self.files.place(row)
