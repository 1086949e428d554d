"""Retrieval of long documents: LoCo's layout, and meetings with their summaries.

LoCo (Saad-Falcon et al. 2024, arXiv:2402.07440), as its authors publish it:

    FOLDER/queries.jsonl or .parquet    qid, query, answer_pids, dataset
    FOLDER/documents.jsonl or .parquet  pid, passage, dataset

Summaries: a file of `meeting_transcripts`, of `speaker` and `content`, with
`general_query_list` and `specific_query_list`, whose `answer`s are summaries, as QMSum
is published (arXiv:2104.05938); of `transcript` and `queries`, the same in one text and
one list; or of `input` and `output`, as SCROLLS (arXiv:2201.03533). Each summary is to
find the text that it sums up, which is how the first LoCo made retrieval of them.
Jina's long tasks are BEIR folders and cluster files.
"""

import collections
from collections.abc import Sequence

from nomic_jax.config import did_you_mean
from nomic_jax.data.sources.source import Row, kind_of, text_of
from nomic_jax.evaluation.kinds.retrieval import JudgedRetrieval, judge
from nomic_jax.evaluation.records import (
    add_once,
    file_in,
    folder_and_part,
    id_in,
    list_in,
    numbered,
    one_text,
    read_records,
    task_name,
)
from nomic_jax.storage import join, name_of

NEEDED = "a LoCo folder holds queries and documents, each .jsonl or .parquet"
DATASET = "dataset"  # column of the task that a row is of
LISTS = ("general_query_list", "specific_query_list")  # QMSum's


def read_loco(place: str) -> list[tuple[str, JudgedRetrieval]]:
    """Read FOLDER, a task for each of its data sets, or FOLDER:DATASET, that one.

    A document with its query's own id is excluded from the query's ranking, unless it
    is an answer.

    Raises:
        ValueError: a file is missing or broken, an id is twice there, an answer is
            none of the documents, or there is no such data set.
    """
    folder, wanted = folder_and_part(place)
    name = name_of(folder)
    documents: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for where, row in read_records(file_in(folder, "documents", NEEDED)):
        text = text_of(row, "passage", where, allow_blank=True)
        add_once(documents[_dataset(row, name)], id_in(row, "pid", where), text, where)
    queries: dict[str, dict[str, str]] = collections.defaultdict(dict)
    judged: dict[str, dict[str, dict[str, int]]] = collections.defaultdict(dict)
    for where, row in read_records(file_in(folder, "queries", NEEDED)):
        dataset, number = _dataset(row, name), id_in(row, "qid", where)
        text = text_of(row, "query", where, allow_blank=True)
        add_once(queries[dataset], number, text, where)
        answers = [
            id_in({"answer_pids": answer}, "answer_pids", where)
            for answer in list_in(row, "answer_pids", where)
        ]
        if not answers:
            raise ValueError(f"{where}: column 'answer_pids' is empty; give an answer")
        for answer in answers:
            if answer not in documents.get(dataset, {}):
                raise ValueError(
                    f"{where}: the answer {answer!r} is none of the documents of "
                    f"{dataset!r}"
                )
        judged[dataset][number] = dict.fromkeys(answers, 1)
    if wanted is not None and wanted not in queries:
        raise ValueError(
            f"{folder} has no data set {wanted!r}: {did_you_mean(wanted, queries)}"
        )
    return [
        (each, judge(join(folder, each), queries[each], documents[each], judged[each],
                     same_text=documents[each].keys()))
        for each in ([wanted] if wanted is not None else queries)
    ]  # fmt: skip


def _dataset(row: Row, name: str) -> str:
    return str(row.get(DATASET) or name)


def read_summaries(place: str) -> list[tuple[str, JudgedRetrieval]]:
    """Read a file of texts and their summaries.

    Equal summaries are one query, which all their texts answer; so are equal texts.

    Raises:
        ValueError: the file is missing or broken; file and line are named.
    """
    pairs: list[tuple[str, str]] = []
    for where, row in read_records(place):
        if "meeting_transcripts" in row:
            turns = _objects(row, ("meeting_transcripts",), where)
            text = "\n".join(
                f"{text_of(turn, 'speaker', where)}: "
                f"{text_of(turn, 'content', where, allow_blank=True)}"
                for turn in turns
            )
            asked = _objects(row, [name for name in LISTS if name in row], where)
        elif "transcript" in row:
            text = one_text(row, ("transcript",), where)
            asked = _objects(row, ("queries",), where)
        else:
            text = one_text(row, ("input",), where)
            asked = [{"answer": one_text(row, ("output",), where)}]
        pairs += [(one_text(each, ("answer",), where), text) for each in asked]
    queries, documents = (numbered(side) for side in zip(*pairs, strict=True))
    judged: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for query, document in pairs:
        judged[str(queries[query])][str(documents[document])] = 1
    task = judge(
        place,
        {str(number): text for text, number in queries.items()},
        {str(number): text for text, number in documents.items()},
        judged,
        same_id="keep",
    )
    return [(task_name(place), task)]


def _objects(row: Row, columns: Sequence[str], place: str) -> list[Row]:
    """Return the objects of columns that are lists.

    Raises:
        ValueError: there is none, or something else is there.
    """
    found = [each for column in columns for each in list_in(row, column, place)]
    if not found:
        raise ValueError(f"{place}: no object in {' or '.join(columns or LISTS)}")
    for each in found:
        if not isinstance(each, dict):
            names = " or ".join(columns)
            raise ValueError(f"{place}: in {names} is {kind_of(each)}, not an object")
    return found
