import gzip
import json
import pickle
import re

import pytest

from nomic_jax.data.sources.jsonl import (
    JsonLines,
    read_pairs,
    read_texts,
    write_pairs,
    write_texts,
)
from nomic_jax.data.sources.pairs import Pair
from nomic_jax.data.sources.source import Source

PAIRS = [
    Pair("what is TSNE?", "a map", ("a tree", "späte Blüte 🌸")),
    Pair("line\u2028separator", 'quotes " and \\ and \n', ()),
]


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.jsonl.gz"])
def test_pairs_are_read_as_they_were_written(tmp_path, name):
    path = tmp_path / "new" / name
    assert write_pairs(path, iter(PAIRS)) == 2
    source = read_pairs(path)
    assert source.pairs == PAIRS
    assert source.name == "mined"
    assert source.document_prefix == "search_document: "
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_equal_pairs_give_equal_bytes(tmp_path):
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for path in paths:
        write_pairs(path, PAIRS)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[4:8] == bytes(4)  # the time in gzip's header


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    def broken():
        yield PAIRS[0]
        raise RuntimeError("the miner stopped")

    path = write(tmp_path / "mined.jsonl", "old")
    with pytest.raises(RuntimeError):
        write_pairs(path, broken())
    with pytest.raises(ValueError, match="nothing to write"):
        write_pairs(path, [])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_refuses_an_ending_that_reading_does_not_know(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        write_pairs(tmp_path / "mined.json", PAIRS)


def test_other_column_names_blank_lines_and_a_byte_order_mark_are_read(tmp_path):
    lines = '\ufeff{"q": "a", "pos": "b", "neg": ["c"]}\n\n{"q": "d", "pos": "e"}'
    path = write(tmp_path / "x.jsonl", lines)
    source = read_pairs(path, query="q", document="pos", negatives="neg", name="mine")
    assert source.pairs == [Pair("a", "b", ("c",)), Pair("d", "e")]
    assert source.name == "mine"


GOOD = b'{"query": "a", "document": "b"}\n'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD + b'{"query": "a", "docu', "x.jsonl:2: not JSON: Unterminated string"),
        (GOOD + b"\n[1]", "x.jsonl:3: a list; an object is needed"),
        (GOOD + b"null", "x.jsonl:2: null; an object is needed"),
        (GOOD + b'{"query": "a", "documents": "b"}', "did you mean 'documents'?"),
        (GOOD + b"{}", "x.jsonl:2: no column 'query'; the row is empty"),
        (b'{"query": " \\n", "document": "b"}', "x.jsonl:1: column 'query' is blank"),
        (b'{"query": "a", "document": 3}', "'document' is a number, not a text"),
        (b'{"query": "a", "document": null}', "'document' is null, not a text"),
        (GOOD[:-2] + b', "negatives": 3}', "'negatives' is a number; a list"),
        (GOOD[:-2] + b', "negatives": ["c", ""]}', "column 'negatives[1]' is blank"),
        (GOOD + b'{"query": "\xff"}', "x.jsonl:2: byte 43 of the file, 0xff, is not"),
        (b'{"query": "a", "document": "\\ud83d"}', "half a character, \\ud83d"),
        (b'{"query": ' + b"9" * 5000 + b"}", "x.jsonl:1: cannot be read as JSON"),
        (b"[" * 100_000, "x.jsonl:1: cannot be read as JSON"),
        (b"", "x.jsonl is empty"),
        (b"\n \n", "x.jsonl is empty"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_number(tmp_path, content, problem):
    path = write(tmp_path / "x.jsonl", content)
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        read_pairs(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def cut(data):
    return data[:-20]


def damage(data):
    return data[:60] + bytes(8) + data[68:]


def plain(data):
    return GOOD


@pytest.mark.parametrize("change", [cut, damage, plain])
def test_broken_gzip_is_refused(tmp_path, change):
    lines = "".join(json.dumps({"text": f"{i * 7919}"}) + "\n" for i in range(5000))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(change(gzip.compress(lines.encode())))
    with pytest.raises(ValueError, match="x.jsonl.gz: broken gzip after line"):
        list(read_texts(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "none.jsonl")


def test_texts_are_read_as_they_were_written(tmp_path):
    texts = ["one", "two\nlines"]
    write_texts(tmp_path / "x.jsonl.gz", texts)
    assert list(read_texts(tmp_path / "x.jsonl.gz")) == texts


def test_plain_text_is_read_by_lines_or_by_paragraphs(tmp_path):
    path = write(tmp_path / "x.txt.gz", "\n one \r\ntwo\n\n\nthree")
    assert list(read_texts(path)) == [" one", "two", "three"]
    assert list(read_texts(path, split="paragraphs")) == [" one\ntwo", "three"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.txt", b" \n\n", "x.txt is empty"),
        ("x.txt", b"one\ntw\xe9\n", "x.txt:2: byte 6 of the file, 0xe9"),
        ("x.csv", b"one", "x.csv ends in neither"),
        ("x.jsonl", b'{"txt": "a"}', "no column 'text'; did you mean 'txt'?"),
    ],
)
def test_text_that_cannot_be_read_is_refused(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=re.escape(problem)):
        list(read_texts(path))


def objects(count, first=0):
    return [{"query": f"späte Blüte {i}", "n": i} for i in range(first, first + count)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_ranges_of_a_file_are_its_objects(tmp_path, name):
    rows = objects(2500)
    source = JsonLines.open(write(tmp_path / name, lines(rows)))
    assert isinstance(source, Source)
    assert (source.name, len(source)) == ("x", 2500)
    for start, stop in [(0, 2500), (0, 1), (999, 1001), (1000, 1003), (2499, 9999)]:
        assert list(source.rows(start, stop)) == rows[start:stop]
    assert list(source.rows(2500, 2600)) == list(source.rows(7, 7)) == []


def test_a_source_reads_the_same_after_it_was_sent_to_another_process(tmp_path):
    source = JsonLines.open(write(tmp_path / "x.jsonl.gz", lines(objects(1500))))
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy.rows(1200, 1210)) == objects(10, first=1200)
    assert copy.fingerprint == source.fingerprint


def test_blank_lines_are_no_rows_and_places_name_lines(tmp_path):
    blocks = [lines(objects(5, first=i)) for i in range(0, 2500, 5)]
    path = write(tmp_path / "x.jsonl", "\n" + "\n \n".join(blocks))
    source = JsonLines.open(path)
    assert list(source.rows(0, 9999)) == objects(2500)
    written = path.read_text().split("\n")
    for row in (0, 4, 5, 999, 1000, 1003, 2499):
        place, _, number = source.place(row).rpartition(":")
        assert place == str(path)
        assert json.loads(written[int(number) - 1])["n"] == row


def test_files_that_match_a_pattern_are_one_source_in_the_order_of_their_names(
    tmp_path,
):
    for i in (2, 0, 1):
        write(tmp_path / f"part{i}.jsonl.gz", lines(objects(7, first=7 * i)))
    source = JsonLines.open(tmp_path / "part*.jsonl.gz", name="all")
    assert list(source.rows(5, 16)) == objects(11, first=5)
    assert source.place(8) == f"{tmp_path}/part1.jsonl.gz:2"
    with pytest.raises(ValueError, match="no file matches"):
        JsonLines.open(tmp_path / "other*.jsonl")


def test_a_line_that_is_no_object_is_refused_when_it_is_read(tmp_path):
    content = lines(objects(3)) + "\n{'query'}\n" + lines(objects(3))
    source = JsonLines.open(write(tmp_path / "x.jsonl", content))
    assert len(list(source.rows(0, 3))) == 3
    with pytest.raises(ValueError, match=r"x\.jsonl:5: not JSON: Expecting property"):
        list(source.rows(0, 7))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_no_source(tmp_path, content):
    with pytest.raises(ValueError, match=r"x\.jsonl is empty"):
        JsonLines.open(write(tmp_path / "x.jsonl", content))


def test_another_content_is_another_fingerprint(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(objects(3)))
    first = JsonLines.open(path).fingerprint
    assert first == JsonLines.open(path).fingerprint
    write(path, lines(objects(4)))
    assert first != JsonLines.open(path).fingerprint
