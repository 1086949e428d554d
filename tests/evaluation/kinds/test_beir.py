import json
import logging

import pytest
from evaluation_files import write_beir, write_jsonl

from nomic_jax.evaluation.kinds.beir import read_beir
from nomic_jax.evaluation.kinds.retrieval import NONE, counts, sides

CORPUS = {
    "d1": ("Fox", "a fox"),
    "d2": ("", "a dog"),
    "d3": (" ", "\n"),
    "4": ("T", ""),
}
QUERIES = {"q1": "fox?", "q2": "dog?", "q3": "unjudged", "q4": "only judged irrelevant"}
QRELS = [("q1", "d1", 2), ("q1", "d3", 1), ("q2", "d2", 1), ("q2", "4", 0)]
QRELS += [("q4", "d1", 0)]


def only(place):
    ((name, task),) = read_beir(str(place))
    return name, task


def test_reads_texts_grades_and_what_is_left_out(tmp_path):
    name, task = only(write_beir(tmp_path / "foxes", CORPUS, QUERIES, QRELS))
    assert name == "foxes"
    assert task.queries == ("fox?", "dog?", "only judged irrelevant")
    assert task.documents == ("Fox a fox", "a dog", "T")  # "title text"
    # The blank document is judged, and behind those that can be found.
    assert task.relevance == ({0: 2, 3: 1}, {1: 1, 2: 0}, {0: 0})
    assert counts(task) == {
        "queries": 3,
        "documents": 3,
        "judgments": 5,
        "queries without a relevant document": 1,
        "queries without judgments left out": 1,
        "blank documents left out": 1,
    }
    assert task.own == (NONE, NONE, NONE)
    assert [side.prompt for side in sides(task)] == ["search_query", "search_document"]


def test_a_split_is_named_in_two_ways(tmp_path):
    place = write_beir(tmp_path / "f", CORPUS, QUERIES, QRELS[:1], split="dev")
    assert only(f"{place}:dev") == only(f"{place}/qrels/dev.tsv")
    name, task = only(f"{place}:dev")
    assert (name, len(task.queries)) == ("f:dev", 1)
    with pytest.raises(ValueError, match=r"qrels/test.tsv is not there; a BEIR folder"):
        read_beir(place)


def test_quoras_documents_get_the_prompt_of_queries(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "nomic_jax"):
        _, task = only(write_beir(tmp_path / "quora", CORPUS, QUERIES, QRELS))
    assert [side.prompt for side in sides(task)] == ["search_query", "search_query"]
    assert "documents get the prompt of queries" in caplog.text


def test_a_folders_own_file_sets_prompts(tmp_path):
    place = write_beir(tmp_path / "quora", CORPUS, QUERIES, QRELS)
    settings = {"query_prompt": "clustering", "document_prompt": "search_document"}
    (tmp_path / "quora" / "task.json").write_text(json.dumps(settings))
    prompts = [side.prompt for side in sides(only(place)[1])]
    assert prompts == ["clustering", "search_document"]


@pytest.mark.parametrize(
    ("texts", "setting", "excluded"),
    [
        (("the fox", "the dog"), None, True),  # queries are documents, as in ArguAna
        (("what?", "why?"), None, False),  # numbers that mean nothing
        (("what?", "why?"), "exclude", True),
        (("the fox", "the dog"), "keep", False),
    ],
)
def test_a_document_that_is_the_query_is_no_answer(tmp_path, texts, setting, excluded):
    corpus = {"1": ("", "the fox"), "2": ("", "the dog"), "3": ("", "a cat")}
    queries = dict(zip("12", texts, strict=True))
    place = write_beir(tmp_path / "f", corpus, queries, [("1", "3", 1), ("2", "3", 1)])
    if setting:
        (tmp_path / "f" / "task.json").write_text(json.dumps({"same_id": setting}))
    assert only(place)[1].own == ((0, 1) if excluded else (NONE, NONE))


@pytest.mark.parametrize("setting", ["auto", "exclude"])
def test_an_answer_is_never_excluded_for_its_id(tmp_path, setting):
    corpus = {"1": ("the fox", "it jumps"), "2": ("", "the dog"), "3": ("a", "cat")}
    queries = {"1": "the fox", "2": "the dog", "3": "cat"}
    answers = [("1", "1", 1), ("2", "2", 1), ("3", "2", 1)]
    place = write_beir(tmp_path / "f", corpus, queries, answers)
    (tmp_path / "f" / "task.json").write_text(json.dumps({"same_id": setting}))
    if setting == "auto":  # 2 and 3 are documents, the third without its title
        assert only(place)[1].own == (NONE, NONE, 2)
    else:
        with pytest.raises(ValueError, match="2 queries, '1' among them, are answered"):
            read_beir(place)


def test_a_query_within_a_document_of_its_number_is_not_that_document(tmp_path):
    corpus = {str(i): (f"title {i}", f"text {i}") for i in range(4)}
    queries = {str(i): f"title {i}" for i in range(4)}
    answers = [(str(i), str((i + 1) % 4), 1) for i in range(4)]
    place = write_beir(tmp_path / "f", corpus, queries, answers)
    assert only(place)[1].own == (NONE,) * 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl.gz", [], "corpus.jsonl.gz is empty: at least one record"),
        (
            "corpus.jsonl.gz",
            [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}],
            "corpus.jsonl.gz:2: the id 'd1' is there a second time",
        ),
        ("corpus.jsonl.gz", [{"_id": "d1", "txt": "a"}], "did you mean 'txt'"),
        ("queries.jsonl", [{"_id": "q1", "text": " "}], "query 'q1' is blank"),
        ("qrels/test.tsv", "q1 d1 1", "test.tsv:1: 'q1 d1 1' is not query id"),
        ("qrels/test.tsv", "q1\td1\thigh", "is not query id, document id and whole"),
        ("qrels/test.tsv", "q9\td1\t1", "the query 'q9' is judged and not there"),
        ("qrels/test.tsv", "q1\td9\t1", "the document 'd9' is judged and not there"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2", "was judged 1 for query 'q1'"),
        ("qrels/test.tsv", "q1\td1\t0", "no query has a relevant document"),
        ("qrels/test.tsv", "", "test.tsv is empty"),
        ("task.json", '{"promt": ""}', "task.json: unknown field 'promt'"),
        ("task.json", '{"same_id": "excluded"}', "did you mean 'exclude'"),
        (
            "task.json",
            '{"query_prompt": "search_qery"}',
            "f/task.json: unknown query_p",
        ),
        ("task.json", '{"same_id": true}', "a boolean; a text is needed"),
    ],
)
def test_bad_input_is_one_line_with_its_place(tmp_path, file, content, message):
    place = tmp_path / "f"
    write_beir(place, {"d1": ("", "a")}, {"q1": "b"}, [("q1", "d1", 1)])
    if isinstance(content, list):
        write_jsonl(place / file, content)
    else:
        (place / file).write_text(content)
    with pytest.raises(ValueError) as error:
        read_beir(str(place))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_corpus_of_blank_texts_is_refused(tmp_path):
    place = write_beir(tmp_path / "f", {"d": ("", " ")}, {"q": "b"}, [("q", "d", 1)])
    with pytest.raises(ValueError, match="the corpus holds no document with text"):
        read_beir(place)
