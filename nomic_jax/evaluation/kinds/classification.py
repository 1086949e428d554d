"""Classification: logistic regression on embeddings, as MTEB trains and tests it.

Ten times a few texts of each class are drawn from the training set, a classifier is fit
to them, and the test set is classified (Muennighoff et al. 2022, arXiv:2210.07316,
section 3.2). Embeddings are not scaled to unit length (Nomic's own MTEB script).
"""

import collections
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int

from nomic_jax.config import did_you_mean
from nomic_jax.evaluation.records import (
    SETTINGS,
    Side,
    at_least_two_classes,
    extra,
    file_in,
    folder_and_part,
    label_in,
    one_text,
    read_records,
    read_settings,
)
from nomic_jax.storage import name_of

NEEDED = "a classification folder holds train.jsonl and test.jsonl of text and label"
DEFAULTS = {"samples_per_label": 8, "experiments": 10, "full": False}  # MTEB's
SEED = 42  # of the draws and of the classifier, MTEB's
ITERATIONS = 100  # of the classifier at most, MTEB's
METRICS = ("accuracy", "f1")


@dataclasses.dataclass(frozen=True)
class Classification:
    """A test set, and of a training set the texts that classifiers are fit to."""

    train: Sequence[str]
    train_labels: Sequence[str]
    test: Sequence[str]
    test_labels: Sequence[str]
    experiments: Sequence[Sequence[int]]  # of each: numbers of its training texts
    full: bool = False  # a further classifier is fit to all training texts


def read_classification(place: str) -> list[tuple[str, Classification]]:
    """Read FOLDER or FOLDER:SPLIT; the split is test if unsaid.

    Columns are `text` (or `sentence`) and `label`. `task.json` in the folder may set
    `samples_per_label`, `experiments`, and `full`: train on the whole training set too.

    Raises:
        ValueError: a file is missing or broken, training texts are of one class only,
            or a label is not among theirs.
    """
    folder, split = folder_and_part(place)
    split = split or "test"
    settings = read_settings(folder, DEFAULTS)
    for name in ("samples_per_label", "experiments"):
        if settings[name] < 1:
            raise ValueError(
                f"{folder}/{SETTINGS}: {name}={settings[name]} must be at least 1"
            )
    train, train_labels = read_labelled(file_in(folder, "train", NEEDED))
    at_least_two_classes(train_labels, f"{folder}, train")
    test, test_labels = read_labelled(file_in(folder, split, NEEDED), {*train_labels})
    draws = [
        *drawn(train_labels, settings["samples_per_label"], settings["experiments"])
    ]
    if not settings["full"]:  # only the texts that are drawn are embedded
        used = sorted({i for draw in draws for i in draw})
        place_of = {number: place for place, number in enumerate(used)}
        draws = [[place_of[i] for i in draw] for draw in draws]
        train = [train[i] for i in used]
        train_labels = [train_labels[i] for i in used]
    task = Classification(
        train, train_labels, test, test_labels, draws, settings["full"]
    )
    name = name_of(folder)
    return [(name if split == "test" else f"{name}:{split}", task)]


def read_labelled(
    file: str, known: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """Read texts and their labels.

    Args:
        file: of records of `text` or `sentence`, and `label`.
        known: the labels there can be; None: any.

    Raises:
        ValueError: the file is missing or broken, or a label is not known; file and
            line are named.
    """
    texts, labels = [], []
    for place, row in read_records(file):
        texts.append(one_text(row, ("text", "sentence"), place))
        labels.append(label_in(row, "label", place))
        if known is not None and labels[-1] not in known:
            raise ValueError(
                f"{place}: no training text has the label {labels[-1]!r}: "
                f"{did_you_mean(labels[-1], known)}"
            )
    return texts, labels


def drawn(
    labels: Sequence[str], samples_per_label: int, experiments: int
) -> Iterator[list[int]]:
    """Draw texts of each class for each experiment, the very ones that MTEB draws.

    Every experiment shuffles the order that the one before left, from the same seed.
    """
    order = list(range(len(labels)))
    for _ in range(experiments):
        np.random.RandomState(SEED).shuffle(order)
        taken = collections.Counter[str]()
        draw = []
        for i in order:
            if taken[labels[i]] < samples_per_label:
                draw.append(i)
                taken[labels[i]] += 1
        yield draw


def sides(task: Classification) -> tuple[Side, ...]:
    """Return the texts to embed: training and test set."""
    return (
        Side(task.train, "classification", True, "Classification"),
        Side(task.test, "classification", False, "Classification"),
    )


def counts(task: Classification) -> dict[str, int]:
    """Count what is measured."""
    return {
        "training texts": len(task.train),
        "test texts": len(task.test),
        "classes": len(set(task.train_labels)),
        "experiments": len(task.experiments),
    }


def score(
    task: Classification,
    train: Float32[np.ndarray, "n E"],
    test: Float32[np.ndarray, "m E"],
) -> dict[str, float]:
    """Classify the test set.

    Returns:
        Accuracy and the mean of the classes' F1, averaged over experiments, and of the
        full training set where the task has it.
    """
    names = sorted({*task.train_labels, *task.test_labels})
    known, gold = (
        np.searchsorted(names, list(labels))
        for labels in (task.train_labels, task.test_labels)
    )
    each = [
        _fitted(train[d], known[d], test, gold) for d in map(list, task.experiments)
    ]
    found = {name: float(np.mean([e[name] for e in each])) for name in METRICS}
    if task.full:
        full = _fitted(train, known, test, gold)
        found |= {f"{name}_full": value for name, value in full.items()}
    return found


def _fitted(
    train: Float32[np.ndarray, "n E"],
    labels: Int[np.ndarray, "n"],
    test: Float32[np.ndarray, "m E"],
    gold: Int[np.ndarray, "m"],
) -> dict[str, float]:
    classifier = extra("sklearn.linear_model").LogisticRegression(
        max_iter=ITERATIONS, random_state=SEED
    )
    with warnings.catch_warnings():
        # The limit is the protocol's: that it is reached is no news.
        category = extra("sklearn.exceptions").ConvergenceWarning
        warnings.simplefilter("ignore", category)
        classifier.fit(train, labels)
    found = classifier.predict(test)
    metrics = extra("sklearn.metrics")
    return {
        "accuracy": float(metrics.accuracy_score(gold, found)),
        "f1": float(metrics.f1_score(gold, found, average="macro")),
    }
