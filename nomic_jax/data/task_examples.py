"""What tasks are learned from: texts, and what is to be said of them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from nomic_jax.data.task_config import LABELLED, HeadConfig, tells_apart

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
                f"{example.place}: {name!r} is no label; known: {', '.join(labels)}"
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
    """Refuse examples of one text beside examples of two.

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
