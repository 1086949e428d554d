import gzip
import json
import pickle
import re

import pytest

from nomic_jax.data.sources import contrastors as module
from nomic_jax.data.sources.contrastors import ShardedPairs
from nomic_jax.data.sources.source import Source

OBJECTIVE = {"self": [], "paired": [["query", "document"]], "triplet": []}


def rows(count, first=0, objective=OBJECTIVE):
    metadata = {"objective": objective}
    return [
        {"query": f"¿qué {i}?", "document": f"eso {i}", "metadata": metadata}
        for i in range(first, first + count)
    ]


def write_shard(folder, number, values):
    path = folder / f"shard-{number:05d}.jsonl.gz"
    # Not ASCII: offsets that count characters would be wrong.
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values)
    path.write_bytes(gzip.compress(lines.encode()))
    return str(path)


def write(folder, sizes=(1500, 10, 1200), counts=None):
    """Shards of rows that count on from one to the next, and their counts.json."""
    first, places, found = 0, [], {}
    for number, size in enumerate(sizes):
        places.append(write_shard(folder, number, rows(size, first)))
        found[f"bucket/{folder.name}/shard-{number:05d}.jsonl.gz"] = size
        first += size
    content = found if counts is None else counts(found)
    (folder / "counts.json").write_text(json.dumps(content))
    return places


def new_form(found):
    return {"count_per_file": found, "total_count": sum(found.values())}


def with_scheme(found):
    return {f"s3://{key}": count for key, count in found.items()}


def open_paired(places):
    return ShardedPairs.open(
        places, "qa", objective="paired", columns=("query", "document")
    )


@pytest.mark.parametrize("counts", [None, new_form, with_scheme])
def test_shards_are_one_source_in_their_order(tmp_path, counts):
    source = open_paired(write(tmp_path, counts=counts))
    assert isinstance(source, Source)
    assert len(source) == 2710 and source.counts == (1500, 10, 1200)
    source = pickle.loads(pickle.dumps(source))
    for start, stop in [(0, 2710), (1490, 1515), (1, 3), (2600, 9999), (1500, 1510)]:
        assert list(source.rows(start, stop)) == rows(2710)[start:stop]
    assert source.place(1502).endswith("shard-00001.jsonl.gz:3")


def test_opening_reads_no_shard(tmp_path, monkeypatch):
    places = write(tmp_path)

    def refuse(*arguments):
        raise AssertionError("a shard was read")

    monkeypatch.setattr(module, "read_lines", refuse)
    monkeypatch.setattr(module.LineIndex, "of", refuse)
    assert len(open_paired(places)) == 2710


def test_without_counts_the_shards_are_counted(tmp_path):
    places = write(tmp_path, sizes=(3, 4))
    (tmp_path / "counts.json").unlink()
    source = open_paired(places)
    assert source.counts == (3, 4)
    assert list(source.rows(2, 5)) == rows(3, first=2)


def test_a_part_of_the_shards_and_offsets_that_are_wrong_do_no_harm(tmp_path):
    places = write(tmp_path)
    offsets = {"bucket/x/shard-00000.jsonl.gz": {"0": [5, 6]}}
    (tmp_path / "offsets.json.gz").write_bytes(
        gzip.compress(json.dumps(offsets).encode())
    )
    assert list(open_paired(places[1:2]).rows(0, 99)) == rows(10, first=1500)


@pytest.mark.parametrize("said", [9, 11, 1, 2000])
@pytest.mark.parametrize("start", [0, 3])
def test_a_count_that_disagrees_is_refused_with_both_numbers(tmp_path, said, start):
    def lie(found):
        return {key: said if n == 10 else n for key, n in found.items()}

    source = open_paired(write(tmp_path, sizes=(5, 10), counts=lie))
    problem = f"shard-00001.jsonl.gz holds 10 rows, its counts.json says {said}"
    with pytest.raises(ValueError, match=problem):
        list(source.rows(5 + min(start, said - 1), len(source)))


def test_a_missing_shard_is_named(tmp_path):
    places = write(tmp_path)
    with pytest.raises(ValueError) as raised:
        open_paired([*places, places[0].replace("00000", "00007")])
    assert "1 of 4 shards are missing, the first is" in str(raised.value)
    assert str(raised.value).endswith("shard-00007.jsonl.gz")


def test_a_shard_without_a_count_is_named(tmp_path):
    def forget(found):
        return dict(list(found.items())[:2])

    with pytest.raises(ValueError, match="has 2 counts, 0 of them for .*shard-00002"):
        open_paired(write(tmp_path, counts=forget))


@pytest.mark.parametrize("count", [-1, "10", True, None])
def test_a_count_that_is_no_number_is_refused(tmp_path, count):
    with pytest.raises(ValueError, match=f"shard-00000.jsonl.gz is {count!r}"):
        open_paired(write(tmp_path, counts=lambda found: dict.fromkeys(found, count)))


def test_empty_shards_are_no_source(tmp_path):
    with pytest.raises(ValueError, match="'qa' is empty: 2 shards, no rows"):
        open_paired(write(tmp_path, sizes=(0, 0)))
    with pytest.raises(ValueError, match="0 of 0 shards"):
        open_paired([])


@pytest.mark.parametrize(
    ("objective", "listed"),
    [
        ({"paired": [["query", "answer"]]}, "[['query', 'answer']]"),
        ({"paired": [["document", "query"]]}, "[['document', 'query']]"),
        ({"triplet": [["query", "document", "neg"]]}, "None"),
        (None, "None"),
    ],
)
def test_a_line_that_does_not_list_the_columns_is_refused(tmp_path, objective, listed):
    values = [*rows(3), *rows(2, objective=objective)]
    place = write_shard(tmp_path, 0, values)
    source = open_paired([place])
    assert len(list(source.rows(0, 3))) == 3
    problem = f"{place}:4: metadata.objective lists {listed} as 'paired'"
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        list(source.rows(0, 5))
    assert "['query', 'document'] is asked for" in str(raised.value)


def test_a_line_without_metadata_is_read_only_where_nothing_is_asked(tmp_path):
    place = write_shard(tmp_path, 0, [{"query": "a", "document": "b"}])
    with pytest.raises(ValueError, match=":1: metadata.objective lists None"):
        list(open_paired([place]).rows(0, 1))
    source = ShardedPairs.open([place], "qa")
    assert list(source.rows(0, 1)) == [{"query": "a", "document": "b"}]


def test_a_cut_shard_is_refused_with_its_line(tmp_path):
    places = write(tmp_path, sizes=(4000,))
    content = (tmp_path / "shard-00000.jsonl.gz").read_bytes()
    (tmp_path / "shard-00000.jsonl.gz").write_bytes(content[:-1000])
    source = open_paired(places)
    with pytest.raises(ValueError, match=r"shard-00000.*broken gzip after line 3\d"):
        list(source.rows(0, 4000))
    with pytest.raises(ValueError, match=r"shard-00000.*broken gzip after line 3\d"):
        list(source.rows(3, 5))


def test_shards_elsewhere_are_read_as_local_ones(tmp_path, monkeypatch):
    import fsspec

    system = fsspec.filesystem("memory")
    write(tmp_path, sizes=(3, 4))
    for path in tmp_path.iterdir():
        system.pipe_file(f"/bucket/qa/{path.name}", path.read_bytes())
    places = [f"memory://bucket/qa/shard-0000{i}.jsonl.gz" for i in range(2)]
    source = open_paired(places)
    assert list(source.rows(1, 6)) == rows(5, first=1)
    with pytest.raises(ValueError, match="1 of 3 shards are missing"):
        open_paired([*places, "memory://bucket/qa/shard-00002.jsonl.gz"])

    def refuse(*arguments, **further):
        raise NotImplementedError("this server does not list")

    found = source.fingerprint
    monkeypatch.setattr(type(system), "ls", refuse)
    assert open_paired(places).fingerprint == found
    with pytest.raises(ValueError, match="1 of 3 shards are missing"):
        open_paired([*places, "memory://bucket/qa/shard-00002.jsonl.gz"])


def test_another_objective_or_shard_is_another_fingerprint(tmp_path):
    places = write(tmp_path, sizes=(3, 4))
    prints = {
        open_paired(places).fingerprint,
        open_paired(places[:1]).fingerprint,
        ShardedPairs.open(places, "qa").fingerprint,
    }
    assert len(prints) == 3
