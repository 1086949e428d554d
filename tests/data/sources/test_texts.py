import pickle

import pytest

from nomic_jax.data.sources.jsonl import TextLines, TextSource
from nomic_jax.data.sources.source import Source


def test_texts_in_memory_are_a_source():
    source = TextSource("mine", ["one", "two", "three"])
    assert isinstance(source, Source)
    assert list(source.rows(1, 9)) == [{"text": "two"}, {"text": "three"}]
    assert source.place(2) == "source 'mine', text 2"
    other = TextSource("mine", ["one", "twothree"])
    assert len(source) == 3 and source.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("split", "texts", "last"),
    [("lines", ["one", "two", "three"], 4), ("paragraphs", ["one\ntwo", "three"], 4)],
)
def test_documents_are_lines_or_paragraphs(tmp_path, split, texts, last):
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n\nthree\n")
    source = TextLines.open(path, split=split)
    assert isinstance(source, Source)
    source = pickle.loads(pickle.dumps(source))
    assert [row["text"] for row in source.rows(0, len(source))] == texts
    assert source.place(len(texts) - 1) == f"{path}:{last}"


def test_another_split_is_another_fingerprint(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n")
    lines, paragraphs = (TextLines.open(path, split=s) for s in ("lines", "paragraphs"))
    assert (len(lines), len(paragraphs)) == (2, 1)
    assert lines.fingerprint != paragraphs.fingerprint


def test_an_empty_file_is_no_source(tmp_path):
    (tmp_path / "x.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"x\.txt is empty"):
        TextLines.open(tmp_path / "x.txt")
