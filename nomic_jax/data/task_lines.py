"""Examples of tasks, one a line of JSON Lines files, checked as they are read.

Rows of Parquet files and of data sets of TFDS and `datasets` have the same columns.

    classification     {"sentence1": ..., "sentence2": ..., "label": ...}
    tags of words      {"tokens": [...], "tags": [...]}
    answers            {"question": ..., "context": ...,
                        "answers": {"text": [...], "answer_start": [...]}}
    choices            {"context": ..., "question": ..., "choices": [...], "label": 0}
    next sentences     {"sentences": [...]}
    masked tokens      {"text": ...}, with next sentences {"sentences": [...]}

The forms are those in which GLUE (arXiv:1804.07461), CoNLL-2003 (arXiv:cs/0306050),
SQuAD (arXiv:1606.05250, arXiv:1806.03822) and SWAG (arXiv:1808.05326) are passed on.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping

from nomic_jax.config import Head
from nomic_jax.data.task_config import HeadConfig, TaskData
from nomic_jax.data.task_examples import (
    NOT_TAGGED,
    ChoiceExample,
    DocumentExample,
    Example,
    Name,
    QuestionExample,
    TextExample,
    WordsExample,
    check_seconds,
)
from nomic_jax.fields import nearest
from nomic_jax.sources.jsonl import JsonLines, parse_object
from nomic_jax.sources.open_source import open_source
from nomic_jax.sources.source import Row, check_text, kind_of, text_of


def read_examples(url: str, head: HeadConfig, data: TaskData) -> list[Example]:
    """Read the examples that a head is trained or measured on.

    Args:
        url: .jsonl or .jsonl.gz, local or at an fsspec URL, or a pattern; .parquet,
            tfds:NAME:SPLIT or hf:FOLDER.
        head: whose form the lines have.
        data: names of columns.

    Raises:
        ValueError: a line is not as it should be; file, line and field are named.
    """
    read = _READERS[head.kind]
    examples = [read(row, place, head, data) for place, row in _rows(url)]
    check_seconds([examples])
    return examples


def _rows(url: str) -> Iterator[tuple[str, Row]]:
    """Yield rows, each with the place that an error begins with."""
    if re.search(r"^(tfds|hf):(?!//)|\.parquet$", url):
        source = open_source(url)
        for number, row in enumerate(source.rows(0, len(source))):
            yield source.place(number), row
        return
    lines = JsonLines.open(url)
    for place, text in lines.files.read(0, len(lines)):
        yield place, parse_object(text, place)


def _text(row: Row, place: str, head: HeadConfig, data: TaskData) -> TextExample:
    if head.kind == "mlm":
        return TextExample(place, text_of(row, "text", place))
    second = data.second
    if second is None and "sentence2" in row:
        second = "sentence2"
    value = _column(row, data.label, place)
    names: tuple[Name, ...] = ()
    targets: tuple[float, ...] = ()
    if head.problem == "regression":
        listed = value if isinstance(value, list) else [value]
        targets = tuple(_target(each, data.label, place) for each in listed)
        if not targets:
            raise ValueError(f"{place}: column {data.label!r} is an empty list")
        if head.labels and len(targets) != len(head.labels):
            raise ValueError(
                f"{place}: column {data.label!r} has {len(targets)} numbers for the "
                f"{len(head.labels)} labels {', '.join(head.labels)}"
            )
    elif head.problem == "many_labels":
        names = tuple(
            _name(each, data.label, place, head)
            for each in _list(value, data.label, place)
        )
    else:
        names = (_name(value, data.label, place, head),)
    return TextExample(
        place,
        text_of(row, data.first, place),
        text_of(row, second, place) if second else None,
        names,
        targets,
    )


def _words(row: Row, place: str, head: HeadConfig, data: TaskData) -> WordsExample:
    words = _texts(row, "tokens", place)
    tags = _list(_column(row, data.tags, place), data.tags, place)
    if len(words) != len(tags):
        raise ValueError(
            f"{place}: {len(words)} tokens and {len(tags)} {data.tags}; one tag a "
            "token is needed"
        )
    names = tuple(
        tag if tag == NOT_TAGGED else _name(tag, f"{data.tags}[{i}]", place, head)
        for i, tag in enumerate(tags)
    )
    return WordsExample(place, words, names)


def _question(
    row: Row, place: str, head: HeadConfig, data: TaskData
) -> QuestionExample:
    question, context = (text_of(row, name, place) for name in ("question", "context"))
    given = _column(row, "answers", place)
    if not isinstance(given, dict):
        raise ValueError(
            f"{place}: column 'answers' is {kind_of(given)}; an object of 'text' and "
            "'answer_start', both lists, is needed"
        )
    answers = tuple(
        check_text(each, f"answers.text[{i}]", place)
        for i, each in enumerate(
            _list(_column(given, "text", place), "answers.text", place)
        )
    )
    starts = _list(_column(given, "answer_start", place), "answers.answer_start", place)
    if len(starts) != len(answers):
        raise ValueError(
            f"{place}: {len(answers)} answers.text and {len(starts)} "
            "answers.answer_start; one start an answer is needed"
        )
    for i, (answer, start) in enumerate(zip(answers, starts, strict=True)):
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(
                f"{place}: answers.answer_start[{i}] is {start!r}; a number of "
                "characters is needed"
            )
        if context[start : start + len(answer)] != answer:
            raise ValueError(
                f"{place}: answers.text[{i}], {answer!r}, is not what stands at "
                f"character {start} of the context, "
                f"{context[start : start + len(answer)]!r}"
            )
    return QuestionExample(place, question, context, answers, tuple(starts))


def _choice(row: Row, place: str, head: HeadConfig, data: TaskData) -> ChoiceExample:
    asked = [
        text_of(row, name, place) for name in ("context", "question") if name in row
    ]
    if not asked:
        hint = nearest("question", row) if row else "the row is empty"
        raise ValueError(f"{place}: no column 'question', and no 'context'; {hint}")
    choices = _texts(row, "choices", place)
    if len(choices) < 2:
        raise ValueError(f"{place}: choices has {len(choices)} text; two are needed")
    right = _column(row, data.label, place)
    known = len(choices)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < known:
        raise ValueError(
            f"{place}: column {data.label!r} is {right!r}, the number of no choice; "
            f"known: 0 to {known - 1}"
        )
    if len(asked) == 2:  # the question goes with each choice
        choices = tuple(f"{asked[1]} {choice}" for choice in choices)
    return ChoiceExample(place, asked[0], choices, right)


def _document(
    row: Row, place: str, head: HeadConfig, data: TaskData
) -> DocumentExample:
    return DocumentExample(place, _texts(row, "sentences", place))


_READERS: Mapping[Head, Callable[[Row, str, HeadConfig, TaskData], Example]] = {
    "mlm": _text,
    "pretraining": _document,
    "next_sentence": _document,
    "sequence_classification": _text,
    "token_classification": _words,
    "question_answering": _question,
    "multiple_choice": _choice,
}


def _column(row: Row, column: str, place: str) -> object:
    if column not in row:
        hint = nearest(column, row) if row else "the row is empty"
        raise ValueError(f"{place}: no column {column!r}; {hint}")
    return row[column]


def _list(value: object, column: str, place: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{place}: column {column!r} is {kind_of(value)}, not a list")
    return value


def _texts(row: Row, column: str, place: str) -> tuple[str, ...]:
    given = _list(_column(row, column, place), column, place)
    if not given:
        raise ValueError(f"{place}: column {column!r} is an empty list")
    return tuple(check_text(t, f"{column}[{i}]", place) for i, t in enumerate(given))


def _name(value: object, column: str, place: str, head: HeadConfig) -> Name:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if value < 0 and str(value) not in head.labels:
            raise ValueError(
                f"{place}: column {column!r} is {value}, which data sets write where "
                "there is no label; leave such lines out, or list it in head.labels"
            )
        return value
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(
        f"{place}: column {column!r} is {value!r}; the name of a label, or its number, "
        "is needed"
    )


def _target(value: object, column: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: column {column!r} is {value!r}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"{place}: column {column!r} is {value}, not finite")
    return float(value)
