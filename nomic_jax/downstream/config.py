"""What a task's head is, and where its examples are: two sections of a config."""

import dataclasses
from typing import get_args

from nomic_jax.config import Head, Pooling, Problem

LABELLED = ("sequence_classification", "token_classification")
SENTENCES = ("next_sentence", "pretraining")  # heads trained on consecutive sentences
MASKED = ("mlm", "pretraining")  # heads trained on masked tokens
# Heads that drop what they classify.
CLASSIFIERS = (*LABELLED, "question_answering", "multiple_choice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What sits on the encoder, and what it tells apart."""

    kind: Head
    problem: Problem | None = None  # of sequence classification
    labels: tuple[str, ...] = ()  # empty: those of the training data, in order
    dropout: float = 0.0  # before a classifier; BERT's is 0.1
    pooling: Pooling = "cls"  # what pre-norm models take of a text

    def __post_init__(self) -> None:
        """Refuse a head that has nothing to learn, and settings of another one.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        if self.kind not in get_args(Head):
            problems.append(f"kind={self.kind!r} must be one of {', '.join(_TRAINED)}")
        elif self.kind == "pooler":
            problems.append(
                f"kind='pooler' has no loss; known are {', '.join(_TRAINED)}"
            )
        if (self.problem is not None) != (self.kind == "sequence_classification") or (
            self.problem not in (None, *get_args(Problem))
        ):
            problems.append(
                f"problem={self.problem!r} and kind={self.kind!r}: sequence "
                f"classification has one of {', '.join(get_args(Problem))}, other "
                "heads None"
            )
        if self.labels and self.kind not in LABELLED:
            problems.append(f"kind={self.kind!r} has no labels, not {self.labels}")
        if twice := {n for n in self.labels if self.labels.count(n) > 1}:
            problems.append(f"labels listed twice: {', '.join(sorted(twice))}")
        elif len(self.labels) == 1 and tells_apart(self):
            problems.append(f"labels={self.labels}: two are needed to tell apart")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be in [0, 1)")
        elif self.dropout and self.kind not in CLASSIFIERS:
            problems.append(f"kind={self.kind!r} has no classifier to drop before")
        if problems:
            raise ValueError("head: " + "; ".join(problems))


def tells_apart(head: HeadConfig) -> bool:
    """Whether a head gives each text or token one of its labels, and so needs two."""
    return head.kind == "token_classification" or head.problem == "one_label"


_TRAINED = tuple(kind for kind in get_args(Head) if kind != "pooler")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """JSON Lines files of examples, and how long their rows are."""

    max_length: int  # tokens of a row; longer texts are cut, contexts go on in windows
    train: str = ""  # .jsonl or .jsonl.gz, at any URL, or a pattern
    validation: tuple[str, ...] = ()  # files that evaluations are on
    first: str = "sentence1"  # column of a text that is classified
    second: str | None = None  # of the text next to it; None: sentence2 where there is
    label: str = "label"  # column of labels, of a text or a choice
    tags: str = "tags"  # column of the labels of `tokens`, one a word
    question_length: int = 64  # tokens of a question about a context; longer are cut
    stride: int = 128  # tokens that a context's windows share with the next
    answer_length: int = 30  # tokens of the longest answer that is given
    mask_rate: float = 0.15  # share of the tokens that MLM heads are to predict

    def __post_init__(self) -> None:
        """Refuse rows without room, and a rate that leaves nothing to do.

        Raises:
            ValueError: with the number.
        """
        if self.max_length < 8:
            raise ValueError(
                f"max_length={self.max_length} must be at least 8: two texts and what "
                "frames them"
            )
        for name in ("question_length", "answer_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.stride < 0:
            raise ValueError(f"stride={self.stride} must not be negative")
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate={self.mask_rate} must be in (0, 1)")
