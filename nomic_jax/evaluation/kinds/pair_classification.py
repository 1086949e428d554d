"""Pair classification: does cosine tell pairs that belong together from the others?

Average precision, and the best accuracy and F1 over all thresholds, as MTEB reports
them (arXiv:2210.07316, section 3.2).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax.evaluation.records import (
    Side,
    at_least_two_classes,
    extra,
    label_in,
    numbered,
    one_text,
    read_records,
    task_name,
)

YES, NO = ("1", "true"), ("0", "false")


@dataclasses.dataclass(frozen=True)
class PairClassification:
    """All texts once, pairs of their numbers, and which pairs belong together."""

    texts: Sequence[str]
    pairs: Sequence[tuple[int, int]]
    labels: Sequence[bool]


def read_pair_classification(place: str) -> list[tuple[str, PairClassification]]:
    """Read a file of `sentence1`, `sentence2` and `label`: 1 or true, 0 or false.

    Raises:
        ValueError: the file is missing or broken, or all labels are the same.
    """
    pairs, labels = [], []
    for where, row in read_records(place):
        first, second = (one_text(row, (f"sentence{i}",), where) for i in (1, 2))
        label = label_in(row, "label", where).lower()
        if label not in YES + NO:
            raise ValueError(f"{where}: column 'label' is {label!r}; 1 or 0 is needed")
        pairs.append((first, second))
        labels.append(label in YES)
    at_least_two_classes([str(int(label)) for label in labels], place)
    number = numbered(text for pair in pairs for text in pair)
    task = PairClassification(
        tuple(number), [(number[a], number[b]) for a, b in pairs], labels
    )
    return [(task_name(place), task)]


def sides(task: PairClassification) -> tuple[Side, ...]:
    """Return the texts to embed."""
    return (Side(task.texts, "classification", task_type="PairClassification"),)


def counts(task: PairClassification) -> dict[str, int]:
    """Count what is measured."""
    return {"pairs": len(task.pairs), "texts": len(task.texts)}


def score(
    task: PairClassification, texts: Float32[np.ndarray, "n E"]
) -> dict[str, float]:
    """Compare the cosine of pairs with their labels.

    Args:
        task: the pairs.
        texts: embeddings, all of the same length.
    """
    metrics = extra("sklearn.metrics")
    first, second = (texts[list(side)] for side in zip(*task.pairs, strict=True))
    cosine = np.einsum("ne,ne->n", first, second, dtype=np.float64)
    labels = np.array(task.labels)
    precision, recall, _ = metrics.precision_recall_curve(labels, cosine)
    wrong, right, _ = metrics.roc_curve(labels, cosine, drop_intermediate=False)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    accuracy = right * labels.mean() + (1 - wrong) * (1 - labels.mean())
    return {
        "average_precision": float(metrics.average_precision_score(labels, cosine)),
        "accuracy": float(accuracy.max()),
        "f1": float(f1.max()),
    }
