"""Texts from files and pipes, vectors to files: whole or not at all."""

import gzip
import io
import json
import sys

import numpy as np
import pytest

from nomic_jax.inference import vector_files
from nomic_jax.inference.vector_files import (
    check_output,
    read_input,
    read_lines,
    write_vectors,
)

TEXTS = ["a fox", "an “odd” one\twith a tab", "ünïcödé"]
VECTORS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def test_every_line_is_a_text_whatever_its_ending():
    lines = io.BytesIO("a fox\r\n  kept \nünïcödé".encode())
    assert read_lines(lines, "x") == ["a fox", "  kept ", "ünïcödé"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a fox\n\xff\xfe dog\n", ":2: byte 0xff at column 1 is not UTF-8"),
        (b"a fox\ndog \xc3\x28\n", ":2: byte 0xc3 at column 5 is not UTF-8"),
        (b"a fox\n\ndog\n", ":2: the line holds no visible character"),
        (b"a fox\ndog\n \t\n", ":3: the line holds no visible character"),
        (b"", " is empty"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, content, says):
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_input(path, column="text")
    assert str(error.value).startswith(f"{path}{says}")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "no.txt", tmp_path / "no.jsonl", tmp_path):
        with pytest.raises(ValueError, match=str(path)):
            read_input(path, column="text")


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_are_read_by_column(tmp_path, packed):
    path = tmp_path / ("texts.jsonl.gz" if packed else "texts.jsonl")
    content = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_input(path, column="body") == TEXTS
    with pytest.raises(ValueError, match=f"{path}:1.*'text'"):
        read_input(path, column="text")


def test_a_broken_json_line_is_named(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a fox"}\n{"text": "dog"\n')
    with pytest.raises(ValueError, match=f"{path}:2"):
        read_input(path, column="text")


def test_arrays_come_back_from_npy(tmp_path):
    write_vectors(tmp_path / "v.npy", TEXTS, VECTORS)
    assert np.array_equal(np.load(tmp_path / "v.npy"), VECTORS)


def test_json_lines_hold_text_and_vector_exactly(tmp_path):
    write_vectors(tmp_path / "v.jsonl", TEXTS, VECTORS)
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["text"] for record in records] == TEXTS
    vectors = np.array([record["embedding"] for record in records], np.float32)
    assert np.array_equal(vectors, VECTORS)


def test_parquet_holds_text_and_vector_exactly(tmp_path):
    import pyarrow.parquet

    write_vectors(tmp_path / "v.parquet", TEXTS, VECTORS)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column("text").to_pylist() == TEXTS
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    assert np.array_equal(vectors, VECTORS)
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list")


@pytest.mark.parametrize("ending", vector_files.FORMATS)
def test_what_fails_half_way_leaves_no_file(tmp_path, monkeypatch, ending):
    def full(file, *_):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(vector_files, "_write_jsonl", full)
    monkeypatch.setattr(vector_files, "_write_parquet", full)
    with pytest.raises(OSError, match="full"):
        write_vectors(tmp_path / f"v{ending}", TEXTS, VECTORS)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    there = tmp_path / "v.npy"
    there.write_text("precious")
    for path, says in (
        (there, "v.npy exists; remove it"),
        (tmp_path / "v.csv", r"v.csv must end in .npy, .jsonl, .parquet"),
        (tmp_path / "no" / "v.npy", "no is not a folder"),
    ):
        with pytest.raises(ValueError, match=says):
            check_output(path)
    assert there.read_text() == "precious"
    check_output(tmp_path / "new.npy")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(ValueError, match="vectors are binary: give --output"):
        check_output(None)
