"""Examples to rows, by the tokenizer's own template of one text or two.

BERT's template gives the second text token type 1, XLM-R's has one type; a model that
has no second type gets none. Of two texts that are too long the longer one is cut.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from nomic_jax.config import Problem
from nomic_jax.data.task_examples import (
    NO_LABEL,
    ChoiceExample,
    TextExample,
    WordsExample,
    label_numbers,
    target_numbers,
)
from nomic_jax.data.task_rows import TaskRows
from nomic_jax.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import tokenizers

TEXTS_PER_CALL = 1024  # to the tokenizer, which holds 170 bytes a token while it works

TextOrPair: TypeAlias = str | tuple[str, str]

logger = logging.getLogger(__name__)


def cutting(
    tokenizer: TextTokenizer, max_length: int, *, stride: int = 0, second: bool = False
) -> "tokenizers.Tokenizer":
    """Copy a tokenizer, and let it cut what exceeds a length.

    Args:
        tokenizer: which cuts nothing itself.
        max_length: tokens of a row, special ones included.
        stride: tokens that what is cut off repeats.
        second: cut the second text alone, not the longer one of two.
    """
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    strategy = "only_second" if second else "longest_first"
    backend.enable_truncation(max_length, stride=stride, strategy=strategy)
    return backend


def encode_texts(
    examples: Sequence[TextExample],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    types: bool,
    labels: Sequence[str] = (),
    problem: Problem | None = None,
) -> TaskRows:
    """Encode texts to be classified, or to be masked.

    Args:
        examples: at least one.
        tokenizer: the model's.
        max_length: tokens of a row.
        types: whether the model tells a second text by token types.
        labels: all that the head knows, in order.
        problem: what the labels are; None: texts without any.

    Raises:
        ValueError: a label is not known, or a number is missing; file, line and the
            known labels are named.
    """
    texts = [e.first if e.second is None else (e.first, e.second) for e in examples]
    ids, kinds = _encoded(texts, tokenizer, max_length, "texts")
    numbered = {name: number for number, name in enumerate(labels)}
    if problem == "regression":
        found = np.array([target_numbers(e, labels) for e in examples], np.float32)
    elif problem == "many_labels":
        found = np.zeros((len(examples), len(labels)), np.float32)
        for row, example in enumerate(examples):
            found[row, label_numbers(example, numbered)] = 1
    elif problem == "one_label":
        found = np.array([label_numbers(e, numbered)[0] for e in examples], np.int32)
    else:
        found = np.zeros(len(examples), np.int32)
    return TaskRows.of(ids, kinds if types else None, found)


def encode_choices(
    examples: Sequence[ChoiceExample],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    types: bool,
) -> TaskRows:
    """Encode questions with their choices, a row each.

    All examples get as many rows as the most choices of one; those of choices that are
    not there are empty.

    Args:
        examples: at least one.
        tokenizer: the model's.
        max_length: tokens of a row.
        types: whether the model tells a second text by token types.
    """
    most = max(len(example.choices) for example in examples)
    pairs: list[TextOrPair] = [(e.first, c) for e in examples for c in e.choices]
    found = zip(*_encoded(pairs, tokenizer, max_length, "choices"), strict=True)
    ids, kinds = [], []
    for example in examples:
        for number in range(most):
            row = next(found) if number < len(example.choices) else ([], [])
            ids.append(row[0])
            kinds.append(row[1])
    right = np.array([example.right for example in examples], np.int32)
    return TaskRows.of(ids, kinds if types else None, right, choices=most)


def encode_words(
    examples: Sequence[WordsExample],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    labels: Mapping[str, int] | None,
) -> tuple[TaskRows, list[np.ndarray]]:
    """Encode words; the first token of each carries its tag, others carry none.

    Args:
        examples: at least one.
        tokenizer: the model's.
        max_length: tokens of a row; words beyond it are cut.
        labels: tags to their numbers; None: tags are not looked at.

    Returns:
        The rows, and of each row the column of each word's first token, or -1 where the
        word was cut, or no token stands for it.

    Raises:
        ValueError: a tag is not known; file, line and the known ones are named.
    """
    backend = cutting(tokenizer, max_length)
    spaced = _needs_spaces(tokenizer)
    ids, tags, places = [], [], []
    for some in in_parts(examples):
        texts = [
            [f" {w}" if spaced and i else w for i, w in enumerate(e.words)]
            for e in some
        ]
        for example, encoding in zip(
            some, backend.encode_batch(texts, is_pretokenized=True), strict=True
        ):
            first = np.full(len(example.words), -1, np.int32)
            words = encoding.word_ids
            for column in reversed(range(len(words))):
                if (word := words[column]) is not None:
                    first[word] = column
            of_tokens = np.full(len(words), NO_LABEL, np.int32)
            if labels is not None:
                numbers = np.array(label_numbers(example, labels), np.int32)
                seen = first >= 0
                of_tokens[first[seen]] = numbers[seen]
            ids.append(encoding.ids)
            tags.append(of_tokens)
            places.append(first)
    cut = sum(int((first < 0).any()) for first in places)
    _tell_cut(cut, len(examples), "texts lost words", max_length)
    return TaskRows.of(ids, None, np.concatenate(tags), of_tokens=True), places


def _needs_spaces(tokenizer: TextTokenizer) -> bool:
    """Whether words given one by one run together, as bytes of GPT-2's scheme do."""
    backend = tokenizer.backend
    given = backend.encode(["a", "a"], is_pretokenized=True).ids
    spaced = backend.encode(["a", " a"], is_pretokenized=True).ids
    return given != spaced and spaced == backend.encode("a a").ids


def _encoded(
    texts: Sequence[TextOrPair], tokenizer: TextTokenizer, max_length: int, what: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids and the token types of each text or pair."""
    backend = cutting(tokenizer, max_length)
    ids, types, cut = [], [], 0
    for some in in_parts(texts):
        for encoding in backend.encode_batch_fast(list(some)):
            ids.append(encoding.ids)
            types.append(encoding.type_ids)
            cut += bool(encoding.overflowing)
    _tell_cut(cut, len(texts), what, max_length)
    return ids, types


def _tell_cut(cut: int, texts: int, what: str, length: int) -> None:
    if cut:
        logger.info("%d of %d %s were cut to %d tokens", cut, texts, what, length)


def in_parts(examples: Sequence) -> Iterator[Sequence]:
    """Yield as many examples at a time as the tokenizer is given."""
    for start in range(0, len(examples), TEXTS_PER_CALL):
        yield examples[start : start + TEXTS_PER_CALL]
