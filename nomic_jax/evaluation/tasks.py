"""How good a head is at its task: figures on examples that carry the right answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nomic_jax.config import Head
from nomic_jax.data.task_config import MASKED, TaskData
from nomic_jax.data.task_examples import NO_LABEL, label_numbers
from nomic_jax.data.task_sets import TaskEncoding
from nomic_jax.evaluation.predictions import (
    encoding_of,
    masked_sums,
    predict,
    row_scores,
)
from nomic_jax.evaluation.task_metrics import (
    answer_metrics,
    class_metrics,
    correlations,
    label_set_metrics,
    tag_metrics,
)
from nomic_jax.model.heads import EncoderWithHead
from nomic_jax.tokenizer import TextTokenizer


def evaluate_task(
    model: EncoderWithHead,
    tokenizer: TextTokenizer,
    examples: Sequence[Any],
    data: TaskData,
) -> dict[str, float]:
    """Measure a model with a head.

    Args:
        model: whole on this host's devices, or on one.
        tokenizer: the model's.
        examples: at least one, of the head's kind.
        data: lengths of rows, and the mask rate.

    Returns:
        Metrics by name: of classes accuracy, F1 and Matthews' correlation; of sets of
        labels accuracy and F1; of numbers Pearson's and Spearman's correlations; of
        tags accuracy and, of B- and I- tags, precision, recall and F1 of entities; of
        answers exact match and F1; of choices and next sentences accuracy; of masked
        tokens accuracy and loss.

    Raises:
        ValueError: an example does not fit the head; file and line are named.
    """
    encoding = encoding_of(model, tokenizer, data)
    kind = encoding.head.kind
    if kind in (*MASKED, "next_sentence"):
        return _of_sentences(model, encoding, examples)
    gold = _GOLD[kind](encoding, examples)
    none = kind == "question_answering" and not all(gold)
    found = predict(model, tokenizer, examples, data, unanswerable=none)
    return _METRICS[kind](encoding, found, gold)


def _numbers(encoding: TaskEncoding) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(encoding.labels)}


def _gold_texts(encoding: TaskEncoding, examples: Sequence[Any]) -> list[Any]:
    if encoding.head.problem == "regression":
        return [example.targets for example in examples]
    return _gold_words(encoding, examples)


def _gold_words(encoding: TaskEncoding, examples: Sequence[Any]) -> list[Any]:
    numbers = _numbers(encoding)
    return [
        tuple(
            None if number == NO_LABEL else encoding.labels[number]
            for number in label_numbers(example, numbers)
        )
        for example in examples
    ]


def _text_metrics(
    encoding: TaskEncoding, found: Sequence[Any], gold: Sequence[Any]
) -> dict[str, float]:
    labels, numbers = encoding.labels, _numbers(encoding)
    if encoding.head.problem == "regression":
        return correlations(np.array(found, np.float64), np.array(gold, np.float64))
    if encoding.head.problem == "many_labels":
        ours, true = (
            np.array([[name in names for name in labels] for names in each], bool)
            for each in (found, gold)
        )
        return label_set_metrics(ours, true)
    return class_metrics(
        np.array([numbers[name] for name in found]),
        np.array([numbers[name] for (name,) in gold]),
        classes=len(labels),
    )


def _choice_metrics(
    encoding: TaskEncoding, found: Sequence[Any], gold: Sequence[Any]
) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.array(found) == np.array(gold)))}


def _of_sentences(
    model: EncoderWithHead, encoding: TaskEncoding, examples: Sequence[Any]
) -> dict[str, float]:
    """Measure masked tokens and next sentences, drawn as in a first step."""
    source = encoding.rows(examples)
    rows = source.rows(np.arange(len(source)), 0)
    figures = {}
    if encoding.head.kind in MASKED:
        sums = masked_sums(model, encoding.tokenizer, encoding, rows)
        figures = {name: float(each.loss) for name, each in sums.items()}
    if encoding.head.kind != "mlm":
        scores = row_scores(
            model, encoding.tokenizer, source, max_length=encoding.data.max_length
        )
        right = np.array(scores).argmax(axis=1) == rows.labels
        figures["accuracy"] = float(right.mean())
    return figures


_GOLD: Mapping[Head, Callable[[TaskEncoding, Sequence[Any]], list[Any]]] = {
    "sequence_classification": _gold_texts,
    "token_classification": _gold_words,
    "question_answering": lambda _, examples: [e.answers for e in examples],
    "multiple_choice": lambda _, examples: [e.right for e in examples],
}
_METRICS: Mapping[Head, Callable[..., dict[str, float]]] = {
    "sequence_classification": _text_metrics,
    "token_classification": lambda _, found, gold: tag_metrics(found, gold),
    "question_answering": lambda _, found, gold: answer_metrics(found, gold),
    "multiple_choice": _choice_metrics,
}
