"""The examples of each kind of head, as rows of token ids and their labels."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nomic_jax.config import Head
from nomic_jax.data.mlm import Masking
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.downstream.config import MASKED, HeadConfig, TaskData
from nomic_jax.downstream.encoding import (
    RowSource,
    encode_choices,
    encode_texts,
    encode_words,
)
from nomic_jax.downstream.questions import encode_questions
from nomic_jax.downstream.sentence_pairs import SentencePairs


@dataclasses.dataclass(frozen=True)
class TaskEncoding:
    """All that makes rows of examples."""

    head: HeadConfig
    data: TaskData
    tokenizer: TextTokenizer
    types: bool  # whether the model tells a second text by token types
    labels: tuple[str, ...]  # that the head knows, in order
    seed: int = 0  # of sentences and masks that are drawn
    labelled: bool = True  # False: whatever examples are labelled with is not looked at

    def rows(self, examples: Sequence[Any]) -> RowSource:
        """Encode examples of the head's kind; see `rows_and_places`."""
        return self.rows_and_places(examples)[0]

    def rows_and_places(self, examples: Sequence[Any]) -> tuple[RowSource, Any]:
        """Encode examples of the head's kind.

        Returns:
            Rows, and what tells where in the examples their tokens stand: windows of
            contexts, the columns of words; None for other heads.

        Raises:
            ValueError: an example does not fit; file, line and field are named.
        """
        return _ENCODERS[self.head.kind](self, examples)

    @property
    def masking(self) -> Masking | None:
        """How rows are masked, for the heads that fill masks."""
        if self.head.kind not in MASKED:
            return None
        return Masking(
            rate=self.data.mask_rate,
            mask_id=self.tokenizer.role_id("mask"),
            vocab_size=self.tokenizer.size,
            special_ids=self.tokenizer.special_ids,
            seed=self.seed,
        )


def _texts(encoding: TaskEncoding, examples: Sequence[Any]):
    return encode_texts(
        examples,
        encoding.tokenizer,
        max_length=encoding.data.max_length,
        types=encoding.types,
        labels=encoding.labels,
        problem=encoding.head.problem if encoding.labelled else None,
    ), None


def _words(encoding: TaskEncoding, examples: Sequence[Any]):
    return encode_words(
        examples,
        encoding.tokenizer,
        max_length=encoding.data.max_length,
        labels={name: number for number, name in enumerate(encoding.labels)}
        if encoding.labelled
        else None,
    )


def _questions(encoding: TaskEncoding, examples: Sequence[Any]):
    return encode_questions(
        examples,
        encoding.tokenizer,
        max_length=encoding.data.max_length,
        question_length=encoding.data.question_length,
        stride=encoding.data.stride,
        types=encoding.types,
    )


def _choices(encoding: TaskEncoding, examples: Sequence[Any]):
    return encode_choices(
        examples,
        encoding.tokenizer,
        max_length=encoding.data.max_length,
        types=encoding.types,
    ), None


def _sentences(encoding: TaskEncoding, examples: Sequence[Any]):
    return SentencePairs.of(
        examples,
        encoding.tokenizer,
        max_length=encoding.data.max_length,
        seed=encoding.seed,
    ), None


_ENCODERS: Mapping[Head, Callable[[TaskEncoding, Sequence[Any]], Any]] = {
    "mlm": _texts,
    "pretraining": _sentences,
    "next_sentence": _sentences,
    "sequence_classification": _texts,
    "token_classification": _words,
    "question_answering": _questions,
    "multiple_choice": _choices,
}
