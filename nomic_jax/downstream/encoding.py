"""Examples as rows of token ids, by the tokenizer's own template of one text or two.

BERT's template gives the second text token type 1, XLM-R's has one type; a model that
has no second type gets none. If two texts are too long, the longer one is cut. All rows
of a task are kept in a few long arrays.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from nomic_jax.config import Problem
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.downstream.examples import (
    NO_LABEL,
    ChoiceExample,
    TextExample,
    WordsExample,
    label_numbers,
    target_numbers,
)

if TYPE_CHECKING:
    import tokenizers


class Rows(NamedTuple):
    """Some examples' rows, not yet padded."""

    ids: Sequence[np.ndarray]  # one row an example, or one a choice
    types: Sequence[np.ndarray] | None  # None: the model has one type
    labels: np.ndarray | Sequence[np.ndarray]  # of examples, or of each row's tokens


@runtime_checkable
class RowSource(Protocol):
    """Examples by number; a pure function that worker processes can be sent."""

    @property
    def choices(self) -> int:
        """Rows of an example."""
        ...

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    @property
    def longest(self) -> int:
        """Tokens that no row has more of."""
        ...

    @property
    def digest(self) -> str:
        """Digest of all rows and labels."""
        ...

    def rows(self, examples: Int64[np.ndarray, "B"], step: int) -> Rows:
        """Return the rows of a batch's examples, in their order."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TaskRows:
    """Encoded examples; rows lie one after another."""

    offsets: Int64[np.ndarray, "bounds"]  # where rows begin, and the last one ends
    ids: Int32[np.ndarray, "tokens"]
    types: Int32[np.ndarray, "tokens"] | None
    # Of examples, or where `of_tokens`, of the tokens.
    labels: Int[np.ndarray, "labelled *each"] | Float[np.ndarray, "labelled *each"]
    of_tokens: bool = False
    choices: int = 1

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        labels: np.ndarray,
        *,
        of_tokens: bool = False,
        choices: int = 1,
    ) -> "TaskRows":
        """Join rows.

        Args:
            ids: of each row.
            types: of each row's tokens; None where the model has one type.
            labels: of the examples, or of all tokens.
            of_tokens: whether it is the tokens that have labels.
            choices: rows of an example.
        """
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])

        def joined(rows):
            flat = (token for row in rows for token in row)
            return np.fromiter(flat, np.int32, count=int(offsets[-1]))

        return cls(
            offsets.astype(np.int64),
            joined(ids),
            None if types is None else joined(types),
            labels,
            of_tokens,
            choices,
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return (len(self.offsets) - 1) // self.choices

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(np.diff(self.offsets).max())

    @property
    def digest(self) -> str:
        """BLAKE2b of the arrays, in 32 hex digits."""
        return digest_of(self.offsets, self.ids, self.types, self.labels)

    def rows(self, examples: Int64[np.ndarray, "B"], step: int = 0) -> Rows:
        """Return the rows of some examples; they are the same in every step."""
        numbers = examples[:, None] * self.choices + np.arange(self.choices)
        spans = [slice(*self.offsets[i : i + 2]) for i in numbers.ravel()]
        return Rows(
            [self.ids[span] for span in spans],
            None if self.types is None else [self.types[span] for span in spans],
            [self.labels[span] for span in spans]
            if self.of_tokens
            else self.labels[examples],
        )


def digest_of(*arrays: np.ndarray | None) -> str:
    """Digest arrays, in 32 hex digits."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(b"" if array is None else np.ascontiguousarray(array).data)
    return found.hexdigest()


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
