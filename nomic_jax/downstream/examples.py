"""Examples of tasks, checked as they are read, from JSON Lines files or data sets.

    classification     {"sentence1": ..., "sentence2": ..., "label": ...}
    tags of words      {"tokens": [...], "tags": [...]}
    answers            {"question": ..., "context": ...,
                        "answers": {"text": [...], "answer_start": [...]}}
    choices            {"context": ..., "question": ..., "choices": [...], "label": 0}
    next sentences     {"sentences": [...]}
    masked tokens      {"text": ...}, with next sentences {"sentences": [...]}

Parquet files and data sets of TFDS and `datasets` have the same columns. The forms are
those in which GLUE (arXiv:1804.07461), CoNLL-2003 (arXiv:cs/0306050), SQuAD
(arXiv:1606.05250, arXiv:1806.03822) and SWAG (arXiv:1808.05326) are distributed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from nomic_jax.config import Head, did_you_mean
from nomic_jax.data.sources.jsonl import JsonLines, parse_object
from nomic_jax.data.sources.registry import open_source
from nomic_jax.data.sources.source import Row, check_text, kind_of, text_of
from nomic_jax.downstream.config import LABELLED, HeadConfig, TaskData, tells_apart

Name: TypeAlias = str | int  # a label, by its name or its number
NOT_TAGGED = -100  # in place of a word's tag: the word has none
NO_LABEL = -1  # the number of what has no label


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """A text, or two, and its labels' names or its numbers."""

    place: str  # to begin an error with
    first: str
    second: str | None = None
    names: tuple[Name, ...] = ()
    targets: tuple[float, ...] = ()  # of a regression


@dataclasses.dataclass(frozen=True, slots=True)
class WordsExample:
    """Words, and the tag of each."""

    place: str
    words: tuple[str, ...]
    names: tuple[Name, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question and the text that may hold its answer."""

    place: str
    question: str
    context: str
    answers: tuple[str, ...] = ()  # all that are right; none: the text holds none
    starts: tuple[int, ...] = ()  # of the answers in the context, in characters


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A text, and texts of which one continues or answers it."""

    place: str
    first: str
    choices: tuple[str, ...]
    right: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class DocumentExample:
    """Sentences that follow one another."""

    place: str
    sentences: tuple[str, ...]


Example: TypeAlias = (
    TextExample | WordsExample | QuestionExample | ChoiceExample | DocumentExample
)


def labels_of(examples: Sequence[Example], head: HeadConfig) -> tuple[str, ...]:
    """Return the labels of a head: the config's, or those of the examples, sorted.

    Numbers are sorted as numbers. A regression of one value has the label `score`.

    Raises:
        ValueError: there are none, or a single one where two are to be told apart.
    """
    if head.labels or head.kind not in LABELLED:
        return head.labels
    if head.problem == "regression":
        first = examples[0]
        assert isinstance(first, TextExample)
        many = len(first.targets)
        return ("score",) if many == 1 else tuple(f"score_{i}" for i in range(many))
    found: set[str] = set()
    for example in examples:
        assert isinstance(example, TextExample | WordsExample)
        found.update(str(name) for name in example.names if name != NOT_TAGGED)
    if not found:
        raise ValueError(f"{examples[0].place}: no example of the file has a label")
    if len(found) == 1 and tells_apart(head):
        raise ValueError(
            f"{examples[0].place}: all examples of the file have the label "
            f"{found.pop()!r}; two are needed to tell apart"
        )
    numbers = all(map(_is_number, found))
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", name) is not None


def label_numbers(
    example: TextExample | WordsExample, labels: Mapping[str, int]
) -> list[int]:
    """Return the numbers of an example's labels.

    A number is taken for that of a label where no label is a number itself, as in data
    sets that number the names a config lists. A word without a tag has `NO_LABEL`.

    Raises:
        ValueError: there is no such label; all that are known are listed.
    """
    numbers = []
    for name in example.names:
        found = labels.get(str(name))
        if found is None and isinstance(name, int):
            if name == NOT_TAGGED and isinstance(example, WordsExample):
                found = NO_LABEL
            elif 0 <= name < len(labels) and not any(map(_is_number, labels)):
                found = name
        if found is None:
            raise ValueError(
                f"{example.place}: {name!r} is not a label; known: {', '.join(labels)}"
            )
        numbers.append(found)
    return numbers


def target_numbers(example: TextExample, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the numbers of a regression's example, one a label.

    Raises:
        ValueError: there are more, or fewer.
    """
    if len(example.targets) != len(labels):
        raise ValueError(
            f"{example.place}: {len(example.targets)} numbers for the {len(labels)} "
            f"labels {', '.join(labels)}"
        )
    return example.targets


def check_labels(
    examples: Sequence[Example], head: HeadConfig, labels: Sequence[str]
) -> None:
    """Refuse examples that are labelled with what a head does not know.

    Raises:
        ValueError: with file and line.
    """
    numbers = {name: number for number, name in enumerate(labels)}
    for example in examples:
        if isinstance(example, TextExample) and head.problem == "regression":
            target_numbers(example, labels)
        elif isinstance(example, TextExample | WordsExample):
            label_numbers(example, numbers)


def check_seconds(files: Sequence[Sequence[Example]]) -> None:
    """Refuse examples of one text next to examples of two.

    Raises:
        ValueError: with file and line of the first that differs from those before it.
    """
    texts = [e for examples in files for e in examples if isinstance(e, TextExample)]
    for example in texts:
        if (example.second is None) != (texts[0].second is None):
            told = "no" if texts[0].second is None else "one"
            raise ValueError(
                f"{example.place}: the lines before have {told} column 'sentence2' and "
                "this one differs; all lines have it or none, in every file"
            )


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
                f"{place}: answers.text[{i}], {answer!r}, is not what is at "
                f"character {start} of the context, "
                f"{context[start : start + len(answer)]!r}"
            )
    return QuestionExample(place, question, context, answers, tuple(starts))


def _choice(row: Row, place: str, head: HeadConfig, data: TaskData) -> ChoiceExample:
    asked = [
        text_of(row, name, place) for name in ("context", "question") if name in row
    ]
    if not asked:
        hint = did_you_mean("question", row) if row else "the row is empty"
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
        hint = did_you_mean(column, row) if row else "the row is empty"
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
