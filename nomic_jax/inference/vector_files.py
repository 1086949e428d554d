"""Files and pipes around `Embedder`: texts in, vectors out."""

import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float32

from nomic_jax.data.sources.jsonl import read_texts
from nomic_jax.storage import whole_file

FORMATS = (".npy", ".jsonl", ".parquet")


def read_lines(lines: Iterable[bytes], name: str) -> list[str]:
    """Decode one text a line.

    Args:
        lines: of a binary stream.
        name: of the stream, for errors.

    Raises:
        ValueError: a line is not UTF-8 or holds no visible character, or there is none;
            the line is named.
    """
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}:{number}: byte 0x{line[error.start]:02x} at column "
                f"{error.start + 1} is not UTF-8"
            ) from error
        if not text.strip():
            raise ValueError(
                f"{name}:{number}: the line holds no visible character; every line "
                "becomes a vector, so leave it out"
            )
        texts.append(text)
    if not texts:
        raise ValueError(f"{name} is empty: at least one line of text is needed")
    return texts


def read_input(path: Path | None, *, column: str) -> list[str]:
    """Read the texts to embed.

    Args:
        path: .jsonl or .jsonl.gz; any other file is one text a line; None is standard
            input, one text a line.
        column: of the text in JSON Lines.

    Raises:
        ValueError: the file cannot be read, or a line is not as it should be.
    """
    if path is None:
        return read_lines(sys.stdin.buffer, "standard input")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return list(read_texts(path, column=column))
    try:
        with path.open("rb") as file:
            return read_lines(file, str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def check_output(path: Path | None) -> None:
    """Refuse, before any work, an output that could not be written.

    Args:
        path: of the vectors; None is standard output.

    Raises:
        ValueError: the ending is unknown, the file exists, its folder does not, or
            standard output is a terminal.
    """
    if path is None:
        if sys.stdout.isatty():
            raise ValueError(
                "vectors are binary: give --output FILE, or send standard output "
                "to a file"
            )
        return
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} must end in {', '.join(FORMATS)}")
    if path.exists():
        raise ValueError(f"{path} exists; remove it or name another --output")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; make it first")


def write_vectors(
    path: Path | None, texts: Sequence[str], vectors: Float32[np.ndarray, "texts E"]
) -> None:
    """Write vectors in input order; a file appears when it is complete.

    Args:
        path: .npy holds the array; .jsonl an object with `text` and `embedding` a line;
            .parquet the same as columns; None writes .npy to standard output.
        texts: as they were read, without prefix.
        vectors: one a text.
    """
    if path is None:
        whole = io.BytesIO()
        np.save(whole, vectors)  # a pipe has no position, which NumPy asks a file for
        sys.stdout.buffer.write(whole.getbuffer())
        sys.stdout.buffer.flush()
        return
    with whole_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, vectors)
        elif path.suffix == ".jsonl":
            _write_jsonl(file, texts, vectors)
        else:
            _write_parquet(file, texts, vectors)


def _write_jsonl(file: IO[bytes], texts: Sequence[str], vectors: np.ndarray) -> None:
    for text, vector in zip(texts, vectors, strict=True):
        record = {"text": text, "embedding": vector.tolist()}
        file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def _write_parquet(file: IO[bytes], texts: Sequence[str], vectors: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    rows = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pa.table({"text": pa.array(texts, pa.string()), "embedding": rows})
    pyarrow.parquet.write_table(table, file)
