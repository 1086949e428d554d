"""Windows of a context next to its question, and where in them the answer is.

A context that does not fit a row goes on in further rows, each of which repeats the
last tokens of the one before (Devlin et al. 2018, arXiv:1810.04805, and its code). The
answer is told by its first and its last token; in a window without it, and of a
question without an answer, both are the row's first token.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.downstream.encoding import TaskRows, cutting, in_parts
from nomic_jax.downstream.examples import QuestionExample


@dataclasses.dataclass(frozen=True)
class Window:
    """Where the tokens of a row come from."""

    example: int  # number of the question
    first: int  # column of the context's first token in the row
    # Of each token of the context in the row: its first character, and the one after.
    spans: Int32[np.ndarray, "tokens 2"]


def encode_questions(
    examples: Sequence[QuestionExample],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    question_length: int,
    stride: int,
    types: bool,
) -> tuple[TaskRows, list[Window]]:
    """Encode questions, each with every window of its context.

    Args:
        examples: at least one; of several answers the first one is the label.
        tokenizer: the model's.
        max_length: tokens of a row.
        question_length: tokens of a question; longer ones are cut.
        stride: tokens of the context that a window shares with the next.
        types: whether the model tells a second text by token types.

    Returns:
        Rows labelled with columns, of the start and of the end, and their windows.

    Raises:
        ValueError: a row has no room for more of the context than windows share, or a
            context is of characters that the tokenizer leaves out.
    """
    check_windows(
        tokenizer,
        max_length=max_length,
        question_length=question_length,
        stride=stride,
    )
    backend = cutting(tokenizer, max_length, stride=stride, second=True)
    ids, kinds, labels, windows = [], [], [], []
    number = 0
    for some in in_parts(examples):
        questions = _shortened(some, tokenizer, question_length)
        pairs = [(q, e.context) for q, e in zip(questions, some, strict=True)]
        for example, whole in zip(some, backend.encode_batch(pairs), strict=True):
            for encoding in (whole, *whole.overflowing):
                columns = [i for i, s in enumerate(encoding.sequence_ids) if s == 1]
                if not columns:
                    raise ValueError(f"{example.place}: the context has no token")
                first, last = columns[0], columns[-1]
                spans = np.array(encoding.offsets[first : last + 1], np.int32)
                windows.append(Window(number, first, spans))
                ids.append(encoding.ids)
                kinds.append(encoding.type_ids)
                labels.append(_label(example, spans, first))
            number += 1
    found = np.array(labels, np.int32)
    return TaskRows.of(ids, kinds if types else None, found), windows


def check_windows(
    tokenizer: TextTokenizer, *, max_length: int, question_length: int, stride: int
) -> None:
    """Refuse lengths with which a context's windows would not move on.

    Raises:
        ValueError: with the numbers.
    """
    frame = tokenizer.backend.num_special_tokens_to_add(is_pair=True)
    if max_length - frame - question_length <= stride:
        raise ValueError(
            f"max_length={max_length} leaves {max_length - frame - question_length} "
            f"tokens for the context next to question_length={question_length}, of "
            f"which windows share stride={stride}; shorten one of them"
        )


def _label(
    example: QuestionExample, spans: Int32[np.ndarray, "tokens 2"], first: int
) -> tuple[int, int]:
    """Return the columns of the first answer's ends, or 0 and 0."""
    if not example.answers:
        return 0, 0
    begin = example.starts[0]
    end = begin + len(example.answers[0])
    if begin < spans[0, 0] or end > spans[-1, 1]:
        return 0, 0
    # The first token that goes on beyond the answer's beginning, and the last one that
    # begins before its end: an answer may begin or end within a token.
    start = int(np.searchsorted(spans[:, 1], begin, side="right"))
    stop = int(np.searchsorted(spans[:, 0], end, side="left"))
    return first + start, first + stop - 1


def _shortened(
    examples: Sequence[QuestionExample], tokenizer: TextTokenizer, length: int
) -> list[str]:
    """Cut questions of more tokens than a length."""
    questions = [example.question for example in examples]
    found = tokenizer.backend.encode_batch(questions, add_special_tokens=False)
    return [
        question[: encoding.offsets[length - 1][1]]
        if len(encoding.ids) > length
        else question
        for question, encoding in zip(questions, found, strict=True)
    ]
