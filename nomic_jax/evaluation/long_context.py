"""Retrieval of long documents: LoCo's layout, and meetings with their summaries.

LoCo (Saad-Falcon et al. 2024, arXiv:2402.07440), as its authors publish it:

    FOLDER/queries.jsonl or .parquet    qid, query, answer_pids, dataset
    FOLDER/documents.jsonl or .parquet  pid, passage, dataset

Summaries: a file of `transcript` and `queries`, a list of objects whose `answer` is a
summary, as QMSum has them (arXiv:2104.05938), or of `input` and `output`, as SCROLLS
(arXiv:2201.03533). Each summary is to find the text that it sums up, which is how the
first LoCo made retrieval of them. Jina's long tasks are BEIR folders and cluster files.
"""

import collections
import re

from nomic_jax.evaluation.judged import JudgedRetrieval, judge
from nomic_jax.evaluation.records import (
    file_in,
    id_in,
    one_text,
    read_records,
    task_name,
    texts_in,
)
from nomic_jax.evaluation.sides import numbered
from nomic_jax.fields import nearest
from nomic_jax.sources.source import Row, kind_of, text_of
from nomic_jax.storage import join, name_of

NEEDED = "a LoCo folder holds queries and documents, each .jsonl or .parquet"
DATASET = "dataset"  # column of the task that a row is of


def read_loco(place: str) -> list[tuple[str, JudgedRetrieval]]:
    """Read FOLDER, a task for each of its data sets, or FOLDER:DATASET, that one.

    A document with its query's own id is excluded from the query's ranking.

    Raises:
        ValueError: a file is missing or broken, an id is twice there, an answer is
            none of the documents, or there is no such data set.
    """
    found = re.fullmatch(r"(.+):([^/:]+)", place)
    folder, wanted = (found[1], found[2]) if found else (place, None)
    folder = folder.rstrip("/")
    name = name_of(folder)
    documents: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for where, row in read_records(file_in(folder, "documents", NEEDED)):
        number, texts = id_in(row, "pid", where), documents[_dataset(row, name)]
        if number in texts:
            raise ValueError(f"{where}: the id {number!r} is there a second time")
        texts[number] = text_of(row, "passage", where, allow_blank=True)
    queries: dict[str, dict[str, str]] = collections.defaultdict(dict)
    judged: dict[str, dict[str, dict[str, int]]] = collections.defaultdict(dict)
    for where, row in read_records(file_in(folder, "queries", NEEDED)):
        dataset, number = _dataset(row, name), id_in(row, "qid", where)
        if number in queries[dataset]:
            raise ValueError(f"{where}: the id {number!r} is there a second time")
        queries[dataset][number] = text_of(row, "query", where, allow_blank=True)
        answers = texts_in(row, "answer_pids", where)
        for answer in answers:
            if answer not in documents.get(dataset, {}):
                raise ValueError(
                    f"{where}: the answer {answer!r} is none of the documents of "
                    f"{dataset!r}"
                )
        judged[dataset][number] = dict.fromkeys(answers, 1)
    if wanted is not None and wanted not in queries:
        raise ValueError(
            f"{folder} has no data set {wanted!r}: {nearest(wanted, queries)}"
        )
    return [
        (each, judge(join(folder, each), queries[each], documents[each], judged[each],
                     same_id="exclude"))
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
        if "transcript" not in row:
            text = one_text(row, ("input",), where)
            pairs.append((one_text(row, ("output",), where), text))
            continue
        text, asked = one_text(row, ("transcript",), where), row.get("queries")
        if not isinstance(asked, list) or not asked:
            raise ValueError(
                f"{where}: column 'queries' is {kind_of(asked)}; a list of objects "
                "with an answer each is needed"
            )
        for each in asked:
            if not isinstance(each, dict):
                raise ValueError(f"{where}: a query is {kind_of(each)}, not an object")
            pairs.append((one_text(each, ("answer",), where), text))
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
