import gzip
import json
import re

import pytest

from nomic_jax.data.sources.contrastors import read_data_yaml
from nomic_jax.data.sources.pairs import Pair, PairColumns

# As contrastors' files are written: uneven zeros in braces, prefixes without colons.
YAML = """
datasets:
  - name: "qa"
    bucket: "shards/qa/shard-{00000..001}.jsonl.gz"
    query_prefix: "search_query"
    document_prefix: "search_document"
    objective:
      type: "paired"
      columns: ["query", "document"]

  - name: "nli"
    bucket: "shards/nli/shard-00000.jsonl.gz"
    query_only: true
    query_prefix: "classification"
    weight: 2
    kd_loss: false
    objective: {type: triplet, columns: [query, pos, neg]}

  - name: texts
    bucket: shards/texts/shard-00000.jsonl.gz
    objective: {type: self, columns: [text]}
"""

ROWS = {
    "qa": {"query": "a", "document": "b"},
    "nli": {"query": "c", "pos": "d", "neg": ["e", "f"]},
    "texts": {"text": "g"},
}
OBJECTIVE = {
    "self": [["text"]],
    "paired": [["query", "document"]],
    "triplet": [["query", "pos", "neg"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, row in ROWS.items():
        place = root / "shards" / name
        place.mkdir(parents=True)
        line = json.dumps(row | {"metadata": {"objective": OBJECTIVE}}) + "\n"
        count = 2 if name == "qa" else 1
        files = [f"shard-{i:05d}.jsonl.gz" for i in range(count)]
        for file in files:
            (place / file).write_bytes(gzip.compress(line.encode() * 3))
        counts = {f"bucket/{name}/{file}": 3 for file in files}
        (place / "counts.json").write_text(json.dumps(counts))
    return root


def read(folder, text, name="data.yaml"):
    (folder / name).write_text(text)
    return read_data_yaml(folder / name)


def test_a_data_yaml_gives_sources_columns_and_prefixes(folder):
    qa, nli, texts = read(folder, YAML)
    assert [entry.source.name for entry in (qa, nli, texts)] == ["qa", "nli", "texts"]
    assert [len(entry.source) for entry in (qa, nli, texts)] == [6, 3, 3]
    assert (qa.query_prefix, qa.document_prefix) == (
        "search_query: ",
        "search_document: ",
    )
    assert not qa.query_only
    # Without a prefix of their own documents have the queries', query_only or not.
    assert nli.query_prefix == nli.document_prefix == "classification: "
    assert nli.query_only
    assert texts.query_prefix == texts.document_prefix == ""
    assert qa.columns == PairColumns("query", "document", None)
    assert nli.columns == PairColumns("query", "pos", "neg")


def test_rows_become_pairs_triplets_and_texts_with_themselves(folder):
    pairs = [
        entry.columns.pair(next(entry.source.rows(0, 1)), entry.source.place(0))
        for entry in read(folder, YAML)
    ]
    assert pairs == [Pair("a", "b"), Pair("c", "d", ("e", "f")), Pair("g", "g")]


def test_a_bare_list_is_a_data_yaml_too(folder):
    bare = YAML.replace("datasets:", "")
    assert [entry.source.name for entry in read(folder, bare)] == ["qa", "nli", "texts"]


def test_a_whole_path_and_a_url_are_taken_as_they_stand(folder):
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(str(folder / "shards"), "/yamls/shards", recursive=True)
    system.pipe_file("/yamls/data.yaml", YAML.encode())
    entries = read_data_yaml("memory://yamls/data.yaml")
    assert [len(entry.source) for entry in entries] == [6, 3, 3]
    for root in (f"{folder}/shards", "memory://yamls/shards"):
        entries = read(folder, YAML.replace("shards/", f"{root}/"), "other.yaml")
        assert entries[0].source.shards[0].startswith(root)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('query_prefix: "s', 'query_prefx: "s', "'query_prefx'; did you mean 'quer"),
        ("datasets:", "dataset:", "unknown key 'dataset'; did you mean 'datasets'"),
        ("type: self", "typ: self", "objective: unknown key 'typ'; did you mean 'type"),
        ('"paired"', '"pairs"', "unknown objective 'pairs'; did you mean 'paired'"),
        ("[query, pos, neg]", "[query, pos]", "'triplet' needs a list of 3"),
        ("[query, pos, neg]", "query", "columns are query; 'triplet' needs a list"),
        ("    bucket: shards/texts", "    weight: shards/texts", "bucket is None; a"),
        ('name: "qa"', "name: 3", "name is 3; a text is needed"),
        ('name: "qa"', 'name: "q/a"', "the name 'q/a' of a source"),
        ("name: texts", "name: qa", "two entries have the name 'qa'"),
        ("query_only: true", "query_only: 1", "query_only is 1, not true or false"),
        ("kd_loss: false", "kd_loss: true", "kd_loss asks for distillation"),
        ("..001}", "..003}", "2 of 4 shards are missing, the first is"),
        ("{00000..001}", "{00000..001", "qa"),
        ("    objective:\n", "   objective:\n", "is not YAML: "),
    ],
)
def test_a_mistake_is_refused_with_its_entry(folder, old, new, problem):
    assert old in YAML
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        read(folder, YAML.replace(old, new, 1), "wrong.yaml")
    assert str(raised.value).startswith(str(folder / "wrong.yaml"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "datasets: []", "datasets: qa", "- qa", "3"])
def test_a_file_without_data_sets_is_refused(folder, text):
    with pytest.raises(ValueError, match="needed"):
        read(folder, text, "wrong.yaml")


def test_columns_that_a_shard_does_not_list_are_refused_as_it_is_read(folder):
    wrong = YAML.replace('["query", "document"]', '["query", "answer"]')
    entry = read(folder, wrong)[0]
    with pytest.raises(ValueError, match=r"qa/shard-00000.jsonl.gz:1: metadata.obj"):
        next(entry.source.rows(0, 1))
