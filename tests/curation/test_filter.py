import gzip
import json

import numpy as np
import pytest
import tiny_checkpoints as tiny

from nomic_jax.cli.filter_pairs import FilterPairs, filter_pairs
from nomic_jax.curation import filter
from nomic_jax.curation.filter import (
    TOLERANCE,
    Filtering,
    blocks,
    filter_source,
    judge,
    ranks,
)
from nomic_jax.data.sources.jsonl import write_pairs
from nomic_jax.data.sources.pairs import Pair, PairColumns, PairSource
from nomic_jax.data.sources.registry import open_source
from nomic_jax.inference.embedder import Embedder
from nomic_jax.storage import read_json

COLUMNS = PairColumns()


def source(pairs, name="forum"):
    return PairSource(name, [Pair(*texts) for texts in pairs], "", "")


def at_cosines(*cosines):
    """Unit rows at the given cosines to the query [1, 0]."""
    return np.array([[c, np.sqrt(1 - c * c)] for c in cosines], np.float32)


QUERY = np.array([[1.0, 0.0]], np.float32)


class Judge(Embedder):
    """Stands for an `Embedder`: texts are cosines to the queries, which are all one."""

    def __init__(self):
        pass

    def encode(self, texts, *, task, progress):
        assert len(set(texts)) == len(texts)  # nothing is embedded twice
        if task == "query":
            return np.repeat(QUERY, len(texts), axis=0)
        return at_cosines(*map(float, texts))


def ranked(documents, **changes):
    filtering = Filtering(model="judge", **changes)
    pairs = source((f"query {i}", text) for i, text in enumerate(documents))
    found = judge(pairs, COLUMNS, 0, len(pairs), Judge(), filtering)
    return [each.rank for each in found]


@pytest.mark.parametrize(
    ("rows", "expected"), [(2, [(0, 2)]), (10, [(0, 3), (3, 6), (6, 10)])]
)
def test_the_last_block_takes_the_rest(rows, expected):
    assert blocks(rows, 3) == expected


def test_ties_never_stand_before_a_pair():
    near = 0.9 + np.float32(0.8) * TOLERANCE
    documents = at_cosines(0.9, 0.9, near, 0.9 + 3 * TOLERANCE, 0.5)
    # The same query five times, as if each were another's: none answers for another.
    queries, pairs = np.repeat(QUERY, 5, axis=0), np.array([(i, i) for i in range(5)])
    scores, found = ranks(queries, documents, pairs, depth=10)
    np.testing.assert_array_equal(found, [2, 2, 2, 1, 5])
    np.testing.assert_array_equal(scores, documents[:, 0])
    _, found = ranks(queries, documents, pairs, depth=2)
    np.testing.assert_array_equal(found, [2, 2, 2, 1, 3])


def test_a_querys_own_answers_are_no_rivals_of_one_another():
    documents = at_cosines(0.9, 0.8, 0.7, 0.6, 0.5, 0.75)
    queries = np.repeat(QUERY, 2, axis=0)
    pairs = np.array([*((0, i) for i in range(5)), (1, 5)])
    # Of the last query's document, which answers no other, 0.7 and below fall behind.
    _, found = ranks(queries, documents, pairs, depth=2)
    np.testing.assert_array_equal(found, [1, 1, 2, 2, 2, 3])


def test_equal_documents_are_one_rival():
    assert ranked(["0.9", "0.9", "0.9", "0.5", "0.3"]) == [1, 1, 1, 2, 3]


def test_blank_texts_are_named_or_dropped():
    assert ranked(["0.5", " ", "0.9"], blank="drop") == [2, 0, 1]
    with pytest.raises(ValueError, match="'forum', pair 1: column 'document' is blank"):
        ranked(["0.5", " ", "0.9"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "", "query_prefix": "query: "}, "and none is named"),
        ({"k": 0}, "k=0 of block=1000000"),
        ({"k": 5, "block": 5}, "k=5 of block=5"),
        ({"max_length": 2}, "max_length=2"),
    ],
)
def test_a_filter_that_filters_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Filtering(**{"model": "judge"} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "nomic-embed-text-v1.5"
    return tiny.add_tokenizer(tiny.folder(folder, tiny.tensors(), tiny.NOMIC_CONFIG))


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder.from_pretrained(model)


WORDS = "a small fox jumps over the lazy dog while search query document".split()


def texts(number, seed=0):
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        found[" ".join(random.choice(WORDS, random.integers(3, 9)))] = None
    return list(found)


def shuffled_pairs():
    """Texts paired with themselves, every fifth with another's of its block."""
    documents = texts(40)
    wrong = list(range(0, 40, 5))
    pairs = [[text, text] for text in documents]
    for row, other in zip(wrong, [5, 0, 15, 10, 25, 20, 35, 30], strict=True):
        pairs[row][1] = documents[other]
    return source(pairs), set(wrong)


SETTINGS = {"model": "tiny", "k": 1, "block": 10}
SETTINGS |= {"query_prefix": "", "document_prefix": ""}


def read(folder):
    lines = []
    for path in sorted(folder.glob("shard-*.jsonl.gz")):
        lines += [json.loads(line) for line in gzip.open(path)]
    return lines


@pytest.mark.slow
def test_what_stays_is_what_its_query_finds(embedder, tmp_path):
    pairs, wrong = shuffled_pairs()
    report = filter_source(pairs, COLUMNS, embedder, Filtering(**SETTINGS), tmp_path)
    lines = read(tmp_path)
    right = [row for row in range(40) if row not in wrong]
    assert [line["id"] for line in lines] == right
    for line in lines:
        assert line["query"] == line["document"] == pairs.pairs[line["id"]].query
        assert line["rank"] == 1
        assert line["score"] == pytest.approx(1, abs=1e-6)  # the digits written
    dropped = {"rank": len(wrong), "blank": 0}
    assert report["pairs"] == 40 and report["blocks"] == 4
    assert report["kept"] == 32 and report["dropped"] == dropped
    assert report["ranks"]["1"] == 32 and sum(report["ranks"].values()) == 40
    assert report["mean_score_of_kept"] == pytest.approx(1, abs=1e-6)
    assert report["mean_score_of_dropped"] < 0.9999
    # The folder is a source in its turn.
    again = open_source(tmp_path, "kept")
    assert [COLUMNS.pair(row, "") for row in again.rows(0, len(again))] == [
        pairs.pairs[row] for row in right
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_a_source_of_no_more_pairs_than_k_is_refused(embedder, tmp_path, number):
    pairs = source((text, text) for text in texts(number))
    filtering, out = Filtering(**SETTINGS | {"k": 2}), tmp_path / "out"
    with pytest.raises(ValueError, match=f"forum: k=2 of {number} pairs, so none can"):
        filter_source(pairs, COLUMNS, embedder, filtering, out)
    assert not out.exists()


def test_a_stopped_filter_goes_on_with_the_blocks_that_are_left(
    embedder, tmp_path, monkeypatch
):
    pairs, _ = shuffled_pairs()
    filtering, judged = Filtering(**SETTINGS), []

    def stopped(source, columns, start, stop, *rest, **options):
        if start == 20 and not judged[2:]:
            judged.append("stopped")
            raise KeyboardInterrupt
        judged.append(start)
        return judge(source, columns, start, stop, *rest, **options)

    monkeypatch.setattr(filter, "judge", stopped)
    with pytest.raises(KeyboardInterrupt):
        filter_source(pairs, COLUMNS, embedder, filtering, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "report.json").exists()
    went_on = filter_source(pairs, COLUMNS, embedder, filtering, tmp_path / "stopped")
    assert judged == [0, 10, "stopped", 20, 30]
    at_once = filter_source(pairs, COLUMNS, embedder, filtering, tmp_path / "whole")
    assert went_on == at_once
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "stopped").iterdir()}


def test_another_filtering_in_the_same_folder_is_refused(embedder, tmp_path):
    pairs, _ = shuffled_pairs()
    filter_source(pairs, COLUMNS, embedder, Filtering(**SETTINGS), tmp_path)
    other = Filtering(**SETTINGS | {"k": 2, "query_prefix": "query: "})
    with pytest.raises(ValueError) as caught:
        filter_source(pairs, COLUMNS, embedder, other, tmp_path)
    for part in ("k was 1 and is 2", "query_prefix was '' and is 'query: '"):
        assert part in str(caught.value)
    fewer = source([(text, text) for text in texts(20)])
    with pytest.raises(ValueError, match="source_fingerprint was"):
        filter_source(fewer, COLUMNS, embedder, Filtering(**SETTINGS), tmp_path)


def test_a_try_that_judged_nothing_does_not_stand_in_the_way(embedder, tmp_path):
    blank = source([("a small fox", " "), *((text, text) for text in texts(12))])
    with pytest.raises(ValueError, match="column 'document' is blank"):
        filter_source(blank, COLUMNS, embedder, Filtering(**SETTINGS), tmp_path)
    dropping = Filtering(**SETTINGS | {"blank": "drop"})
    report = filter_source(blank, COLUMNS, embedder, dropping, tmp_path)
    assert report["dropped"]["blank"] == 1
    assert read_json(tmp_path / "filtering.json")["blank"] == "drop"


@pytest.mark.slow
def test_a_named_judge_gets_its_own_prefixes_unless_others_are_given(
    embedder, tmp_path
):
    pairs = source([(text, text) for text in texts(12)])
    for name, given, expected in (
        ("own", None, "search_query: "),
        ("none", "", ""),
        ("other", "query: ", "query: "),
    ):
        filtering = Filtering(**SETTINGS | {"query_prefix": given})
        filter_source(pairs, COLUMNS, embedder, filtering, tmp_path / name)
        assert read_json(tmp_path / name / "filtering.json")["query_prefix"] == expected


def test_hosts_take_blocks_in_turn(embedder, tmp_path, monkeypatch):
    pairs, _ = shuffled_pairs()
    monkeypatch.setattr(filter.hosts, "count", lambda: 2)
    for host, blocks_there in ((1, [1, 3]), (0, [0, 1, 2, 3])):
        monkeypatch.setattr(filter.hosts, "number", lambda host=host: host)
        monkeypatch.setattr(
            filter.hosts,
            "broadcast_from_host0",
            lambda what, work, host=host: [{}] if host and what == "report" else work(),
        )
        filter_source(pairs, COLUMNS, embedder, Filtering(**SETTINGS), tmp_path)
        found = sorted(path.name for path in tmp_path.glob("block-*.json"))
        assert found == [f"block-{block:05d}.json" for block in blocks_there]
    assert read_json(tmp_path / "report.json")["kept"] == 32


def test_the_command_filters_files_and_says_what_stayed(model, tmp_path, capsys):
    pairs, _ = shuffled_pairs()
    write_pairs(tmp_path / "forum.jsonl", pairs.pairs)
    options = FilterPairs(
        sources=(str(tmp_path / "forum.jsonl"),),
        model=str(model),
        out=str(tmp_path / "out"),
        k=1,
        block=10,
        hosts=1,  # JAX is awake already
    )
    assert filter_pairs(options) == 0
    said = capsys.readouterr()
    assert "forum: kept 32 of 40 pairs, dropped 8 by rank, 0 by blank" in said.out
    assert "rows 30 to 39: kept 8 of 10" in said.err
    report = read_json(tmp_path / "out" / "report.json")
    assert report["forum"]["kept"] == len(read(tmp_path / "out" / "forum"))
