import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from nomic_jax.data.sources.contrastors import ShardedPairs
from nomic_jax.data.sources.jsonl import JsonLines, TextLines, TextSource
from nomic_jax.data.sources.registry import KINDS, open_source
from nomic_jax.data.sources.source import Source
from nomic_jax.data.sources.tables import DatasetsRows, ParquetRows, TfdsRows

ROWS = [{"text": f"text {i}"} for i in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    texts = "\n".join(row["text"] for row in ROWS).encode()
    for name, content in (("x.jsonl", lines), ("x.txt", texts)):
        (root / name).write_bytes(content)
        (root / f"{name}.gz").write_bytes(gzip.compress(content))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), root / "x.parquet")
    (root / "agnews").mkdir()
    (root / "agnews" / "shard-00000.jsonl.gz").write_bytes(gzip.compress(lines))
    (root / "other").mkdir()
    return root


@pytest.mark.parametrize(
    ("place", "kind", "name"),
    [
        ("x.jsonl", JsonLines, "x"),
        ("x.jsonl.gz", JsonLines, "x"),
        ("x.txt", TextLines, "x"),
        ("x.txt.gz", TextLines, "x"),
        ("x.parquet", ParquetRows, "x"),
        ("agnews", ShardedPairs, "agnews"),
        ("agnews/", ShardedPairs, "agnews"),
        ("agnews/shard-*.jsonl.gz", JsonLines, "agnews"),
    ],
)
def test_the_ending_tells_the_kind(folder, place, kind, name):
    for root in (str(folder), f"file://{folder}"):
        source = open_source(f"{root}/{place}")
        assert isinstance(source, kind) and isinstance(source, Source)
        assert source.name == name
        assert list(source.rows(0, 9)) == ROWS
    assert open_source(f"{folder}/{place}", "mine").name == "mine"


def test_paragraphs_are_asked_for(folder):
    assert len(open_source(folder / "x.txt")) == 3
    assert len(open_source(folder / "x.txt", split="paragraphs")) == 1


def test_schemes_tell_the_kind(monkeypatch):
    asked = []

    def opened(place, name):
        asked.append((place, name))
        return TextSource("opened", [])

    for kind in (TfdsRows, DatasetsRows):
        monkeypatch.setattr(kind, "open", opened)
    open_source("tfds:glue/mrpc:train")
    open_source("hf:saved/wiki", "wiki")
    assert asked == [("glue/mrpc:train", None), ("saved/wiki", "wiki")]


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("x.csv", "x.csv has an unknown ending"),
        ("*.json", "json has an unknown ending"),
        ("nothing", "nothing is not a file or folder"),
        ("data.yaml", "data.yaml is a data YAML"),
        ("other", "no file matches .*other/shard-"),
        ("none.jsonl", "none.jsonl cannot be read: No such file"),
        ("none.parquet", "none.parquet cannot be read: No such file"),
        ("none-*.txt", "no file matches"),
    ],
)
def test_what_is_unknown_or_missing_is_refused(folder, place, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        open_source(f"{folder}/{place}")
    if "known" in str(raised.value):
        assert KINDS in str(raised.value)
    assert "\n" not in str(raised.value)
