"""What tasks are learned from: texts, and what is to be said of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from nomic_jax.data.task_config import LABELLED, HeadConfig

Name: TypeAlias = str | int  # a label, by its name or its number


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
    """
    if head.labels or head.kind not in LABELLED:
        return head.labels
    if head.problem == "regression":
        first = examples[0]
        assert isinstance(first, TextExample)
        many = len(first.targets)
        return ("score",) if many == 1 else tuple(f"score_{i}" for i in range(many))
    found: set[Name] = set()
    for example in examples:
        assert isinstance(example, TextExample | WordsExample)
        found.update(example.names)
    numbers = all(isinstance(name, int) for name in found)
    ordered = sorted(found) if numbers else sorted(map(str, found))
    if not ordered:
        raise ValueError(f"{examples[0].place}: no example of the file has a label")
    return tuple(map(str, ordered))


def label_numbers(
    example: TextExample | WordsExample, labels: Mapping[str, int]
) -> list[int]:
    """Return the numbers of an example's labels.

    A number that is no label's name is taken for a label's number, as in data sets that
    number the names a config lists.

    Raises:
        ValueError: there is no such label; all that are known are listed.
    """
    numbers = []
    for name in example.names:
        found = labels.get(str(name))
        if found is None and isinstance(name, int) and 0 <= name < len(labels):
            found = name
        if found is None:
            raise ValueError(
                f"{example.place}: {name!r} is no label; known: {', '.join(labels)}"
            )
        numbers.append(found)
    return numbers
