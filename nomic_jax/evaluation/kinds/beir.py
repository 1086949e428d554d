"""Folders in BEIR's layout: corpus, queries, and judgments by split.

    FOLDER/corpus.jsonl(.gz)   _id, title, text
    FOLDER/queries.jsonl(.gz)  _id, text
    FOLDER/qrels/SPLIT.tsv     query-id, corpus-id, score

A document is "title text", as MTEB joins them (Thakur et al. 2021, arXiv:2104.08663).
"""

import collections
import logging
import re

from nomic_jax.config import NOMIC_PROMPTS, did_you_mean
from nomic_jax.data.sources.lines import read_lines
from nomic_jax.data.sources.source import text_of
from nomic_jax.evaluation.kinds.retrieval import JudgedRetrieval, judge
from nomic_jax.evaluation.records import (
    SETTINGS,
    add_once,
    file_in,
    folder_and_part,
    id_in,
    read_records,
    read_settings,
)
from nomic_jax.storage import exists, join, name_of

NEEDED = "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
HEADER = "score"  # the last name of a first line that holds no judgment
SAME_ID = ("auto", "exclude", "keep")
logger = logging.getLogger(__name__)


def read_beir(place: str) -> list[tuple[str, JudgedRetrieval]]:
    """Read FOLDER, FOLDER:SPLIT or FOLDER/qrels/SPLIT.tsv; the split is test if unsaid.

    `task.json` in the folder may set `query_prompt`, `document_prompt` and `same_id`.
    Quora's documents are questions, so those of a folder whose name contains `quora`
    get the queries' prompt where nothing else is set (arXiv:2402.01613, section 5.3).

    Raises:
        ValueError: a file is missing or broken, an id is twice there, a judgment names
            an id that is not there, a setting is unknown, or nothing remains to be
            measured.
    """
    folder, split = _folder_and_split(place)
    quora = "quora" in name_of(folder).lower()
    documents = "search_query" if quora else "search_document"
    known = {
        "query_prompt": "search_query",
        "document_prompt": documents,
        "same_id": "auto",
    }
    settings = read_settings(folder, known)
    for name, value in settings.items():
        allowed = SAME_ID if name == "same_id" else NOMIC_PROMPTS
        if value not in allowed:
            raise ValueError(
                f"{join(folder, SETTINGS)}: unknown {name}={value!r}: "
                f"{did_you_mean(value, allowed)}"
            )
    if quora and settings["document_prompt"] == documents:
        logger.info("%s: documents get the prompt of queries, as Quora's do", folder)
    corpus_file = file_in(folder, "corpus", NEEDED)
    queries = _queries(file_in(folder, "queries", NEEDED))
    corpus, same_text = _corpus(corpus_file, queries)
    qrels = join(folder, "qrels", f"{split}.tsv")
    if not exists(qrels):
        raise ValueError(f"{qrels} is not there; {NEEDED}")
    judgments = _judgments(qrels, queries, corpus)
    task = judge(folder, queries, corpus, judgments, same_text=same_text, **settings)
    name = name_of(folder)
    return [(name if split == "test" else f"{name}:{split}", task)]


def _folder_and_split(place: str) -> tuple[str, str]:
    if found := re.fullmatch(r"(.+)/qrels/([^/]+)\.tsv", place):
        return found[1], found[2]
    folder, split = folder_and_part(place)
    return folder, split or "test"


def _queries(file: str) -> dict[str, str]:
    """Read queries by id.

    Raises:
        ValueError: the file is broken, or an id is twice there.
    """
    found: dict[str, str] = {}
    for place, row in read_records(file):
        text = text_of(row, "text", place, allow_blank=True)
        add_once(found, id_in(row, "_id", place), text, place)
    return found


def _corpus(file: str, queries: dict[str, str]) -> tuple[dict[str, str], set[str]]:
    """Read documents by id, and the ids of those that are the query of their own id.

    Raises:
        ValueError: the file is broken, or an id is twice there.
    """
    found: dict[str, str] = {}
    same: set[str] = set()
    for place, row in read_records(file):
        title = text_of(row, "title", place, allow_blank=True) if "title" in row else ""
        text = text_of(row, "text", place, allow_blank=True).strip()
        name = id_in(row, "_id", place)
        document = f"{title} {text}".strip()
        add_once(found, name, document, place)
        if name in queries and queries[name].strip() in (text, document):
            same.add(name)
    return found, same


def _judgments(
    file: str, queries: dict[str, str], corpus: dict[str, str]
) -> dict[str, dict[str, int]]:
    """Read grades by query and document.

    Raises:
        ValueError: a line is not three columns, names an id that is not there, or
            contradicts an earlier one.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for line in read_lines(file):
        place, columns = f"{file}:{line.number}", line.text.split("\t")
        if line.number == 1 and columns[-1] == HEADER:
            continue
        if len(columns) != 3 or not re.fullmatch(r"-?\d+", columns[2].strip()):
            raise ValueError(
                f"{place}: {line.text[:60]!r} is not query id, document id and whole "
                "number with tabs between"
            )
        query, document, grade = columns[0], columns[1], int(columns[2])
        for what, name, known in (
            ("query", query, queries),
            ("document", document, corpus),
        ):
            if name not in known:
                raise ValueError(
                    f"{place}: the {what} {name!r} is judged and not there; the files "
                    "of a folder belong together"
                )
        if found[query].setdefault(document, grade) != grade:
            raise ValueError(
                f"{place}: document {document!r} was judged {found[query][document]} "
                f"for query {query!r} before, and is {grade} here"
            )
    if not found:
        raise ValueError(f"{file} is empty: at least one judgment is needed")
    return found
