import subprocess
import sys

import pytest

from nomic_jax.data.sources.source import (
    check_name,
    check_text,
    kind_of,
    parts,
    source_name,
    stable_hash,
    text_of,
)


def test_hashes_are_those_of_any_other_process():
    code = (
        "from nomic_jax.data.sources.source import stable_hash; "
        "print(stable_hash('é', seed=5))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
    )
    assert int(other.stdout) == stable_hash("é", seed=5) != stable_hash("é")


@pytest.mark.parametrize("sizes", [(5,), (2, 0, 3), (1, 1, 1, 1, 1)])
def test_parts_of_a_range_are_its_rows_in_their_order(sizes):
    rows = [(part, row) for part, size in enumerate(sizes) for row in range(size)]
    for start in range(6):
        for stop in range(start, 8):
            found = [
                (part, row)
                for part, first, last in parts(sizes, start, stop)
                for row in range(first, last)
            ]
            assert found == rows[start:stop]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("data/reviews.jsonl.gz", "reviews"),
        ("gs://bucket/wiki dump.parquet", "wiki-dump"),
        ("dumps/abstracts/*.jsonl", "abstracts"),
        ("agnews/shard-{00000..00004}.jsonl.gz", "agnews"),
        ("agnews/", "agnews"),
        ("wiki-20230601.en-train", "wiki-20230601.en-train"),
        ("*.txt", "source"),
        ("wiki größe.txt", "wiki-gr-e"),
    ],
)
def test_a_place_gives_a_name_that_a_folder_can_have(place, name):
    assert check_name(source_name(place)) == name


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "größe"])
def test_a_name_that_no_folder_should_have_is_refused(name):
    with pytest.raises(ValueError, match="cannot name a folder"):
        check_name(name)


def test_a_wrong_column_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="x:1: no column 'txt'; did you mean 'text'"):
        text_of({"text": "a", "id": 3}, "txt", "x:1")
    with pytest.raises(ValueError, match="x:1: no column 'text'; the row is empty"):
        text_of({}, "text", "x:1")
    assert text_of({"text": "a"}, "text", "x:1") == "a"


def test_what_is_no_text_is_named_by_its_kind():
    kinds = {None: "null", True: "a boolean", 1.5: "a number", b"a": "of type bytes"}
    for value, kind in kinds.items():
        assert kind_of(value) == kind
        with pytest.raises(ValueError, match=f"column 'text' is {kind}, not a text"):
            check_text(value, "text", "x:1")
