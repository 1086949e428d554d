"""Metrics of a head on labelled examples.

Matthews   correlation of predicted and true classes (Gorodkin 2004,
           doi:10.1016/j.compbiolchem.2004.09.006, equation 8)
answers    exact match and F1 of words, as SQuAD's own script counts (Rajpurkar et
           al. 2016, arXiv:1606.05250, section 6; 2018, arXiv:1806.03822)
entities   F1 of whole entities, as conlleval counts (Tjong Kim Sang and Buchholz
           2000, arXiv:cs/0009008)
"""

import collections
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from nomic_jax.config import Head
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.downstream.config import MASKED, TaskData
from nomic_jax.downstream.examples import NO_LABEL, label_numbers
from nomic_jax.downstream.heads import TaskEncoding
from nomic_jax.downstream.prediction import (
    encoding_of,
    masked_sums,
    predict,
    row_scores,
)
from nomic_jax.model.heads import EncoderWithHead

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def class_metrics(
    predicted: Int[np.ndarray, "n"], gold: Int[np.ndarray, "n"], *, classes: int
) -> dict[str, float]:
    """Compare classes: accuracy, F1 and Matthews' correlation, each 0 where undefined.

    F1 is that of class 1 where there are two, as GLUE has it, else the mean over the
    classes that are true or predicted of any.
    """
    table = np.zeros((classes, classes))
    np.add.at(table, (gold, predicted), 1)
    right, truly, said = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    f1 = 2 * right / np.maximum(truly + said, 1)
    there = truly + said > 0
    total = table.sum()
    covariance = right.sum() * total - truly @ said
    spread = np.sqrt((total**2 - truly @ truly) * (total**2 - said @ said))
    return {
        "accuracy": float(right.sum() / max(total, 1)),
        "f1": float(f1[1] if classes == 2 else f1[there].mean()),
        "matthews": float(covariance / spread) if spread else 0.0,
    }


def label_set_metrics(
    predicted: Bool[np.ndarray, "n labels"], gold: Bool[np.ndarray, "n labels"]
) -> dict[str, float]:
    """Compare sets of labels: how often all are right, and F1 over all labels."""
    right, said, truly = (
        int(each.sum()) for each in (predicted & gold, predicted, gold)
    )
    return {
        "accuracy": float((predicted == gold).all(axis=1).mean()),
        **_precision_and_recall(right, said, truly),
    }


def correlations(
    predicted: Float[np.ndarray, "n labels"], gold: Float[np.ndarray, "n labels"]
) -> dict[str, float]:
    """Compare numbers: Pearson's and Spearman's correlations, the means over labels.

    Numbers that are all equal have no correlation, which counts as 0.
    """
    pairs = list(zip(predicted.T, gold.T, strict=True))
    ranked = [(_ranks(first), _ranks(second)) for first, second in pairs]
    return {
        "pearson": float(np.mean([_pearson(*pair) for pair in pairs])),
        "spearman": float(np.mean([_pearson(*pair) for pair in ranked])),
    }


def answer_metrics(
    predicted: Sequence[str], gold: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compare answers with all that are right, and take the best; "" is no answer.

    Case, punctuation, articles and spaces do not count; a right answer of nothing else
    is left out.
    """
    exact, f1 = [], []
    for answer, right in zip(predicted, gold, strict=True):
        ours = _words(answer)
        theirs = [words for words in map(_words, right) if words] or [[]]
        exact.append(max(float(ours == each) for each in theirs))
        f1.append(max(_overlap(ours, each) for each in theirs))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def tag_metrics(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str | None]]
) -> dict[str, float]:
    """Compare the tags of words: accuracy, and of B- and I- tags those of entities.

    Words whose right tag is None are left out.
    """
    pairs = [
        (
            [ours for ours, true in zip(p, g, strict=True) if true is not None],
            [true for true in g if true is not None],
        )
        for p, g in zip(predicted, gold, strict=True)
    ]
    same = [ours == true for p, g in pairs for ours, true in zip(p, g, strict=True)]
    found = {"accuracy": float(np.mean(same or [0.0]))}
    every = {tag for _, tags in pairs for tag in tags} - {"O"}
    if not all(tag.startswith(("B-", "I-")) for tag in every):
        return found
    entities = [(set(_entities(p)), set(_entities(g))) for p, g in pairs]
    right = sum(len(ours & true) for ours, true in entities)
    said = sum(len(ours) for ours, _ in entities)
    truly = sum(len(true) for _, true in entities)
    return {**found, **_precision_and_recall(right, said, truly)}


def _precision_and_recall(right: int, said: int, truly: int) -> dict[str, float]:
    return {
        "precision": float(right / max(said, 1)),
        "recall": float(right / max(truly, 1)),
        "f1": float(2 * right / max(said + truly, 1)),
    }


def _entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield kind, first word and the word after; an I- of another kind begins one."""
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, its = tag.partition("-")
        its = "" if tag == "O" else its
        if kind and (prefix != "I" or its != kind):
            yield kind, begin, place
            kind = ""
        if its and not kind:
            begin, kind = place, its


def _words(answer: str) -> list[str]:
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def _overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Number values by size; equal ones share the mean of their numbers."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    x, y = (np.asarray(each, np.float64) for each in (first, second))
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread else 0.0


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
