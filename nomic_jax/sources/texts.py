"""Plain text as a source: documents that are lines or paragraphs, or lie in memory."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nomic_jax.sources.lines import IndexedFiles, Split
from nomic_jax.sources.source import Row, check_name, source_name


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
