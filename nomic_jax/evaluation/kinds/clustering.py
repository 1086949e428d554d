"""Clustering: do k-means clusters of embeddings agree with the labels?

MiniBatchKMeans with as many clusters as labels, and the V-measure (Rosenberg and
Hirschberg 2007), averaged over sets, as MTEB's first clustering tasks
(arXiv:2210.07316, section 3.2).
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
    list_in,
    numbered,
    one_text,
    read_records,
    task_name,
    texts_in,
)

SEED = 42  # of k-means, MTEB's
BATCH = 500  # of MiniBatchKMeans, MTEB's


@dataclasses.dataclass(frozen=True)
class ClusterSet:
    """Texts that are clustered together, by their numbers, and their labels."""

    texts: Sequence[int]
    labels: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Clustering:
    """All texts once, and the sets they are in."""

    texts: Sequence[str]
    sets: Sequence[ClusterSet]


def read_clustering(place: str) -> list[tuple[str, Clustering]]:
    """Read a file of one text and label a line, or of one set a line.

    Columns are `text` (or `sentence`) and `label`: the file is one set; or `sentences`
    and `labels`, two lists.

    Raises:
        ValueError: the file is missing or broken, holds both, or a set has one class
            only.
    """
    together: list[tuple[str, str]] = []  # what is not in sets
    sets: list[tuple[Sequence[str], Sequence[str]]] = []
    for where, row in read_records(place):
        if (together and "sentences" in row) or (sets and "sentences" not in row):
            raise ValueError(
                f"{where}: a set on one line and single texts on others; give each a "
                "file of its own"
            )
        if "sentences" in row:
            texts = texts_in(row, "sentences", where)
            labels = list_in(row, "labels", where)
            if len(labels) != len(texts):
                raise ValueError(
                    f"{where}: {len(labels)} labels for {len(texts)} sentences"
                )
            names = [label_in({"labels": each}, "labels", where) for each in labels]
            at_least_two_classes(names, where)
            sets.append((texts, names))
        else:
            text = one_text(row, ("text", "sentence"), where)
            together.append((text, label_in(row, "label", where)))
    if together:
        texts, labels = zip(*together, strict=True)
        at_least_two_classes(labels, place)
        sets.append((texts, labels))
    number = numbered(text for texts, _ in sets for text in texts)
    task = Clustering(
        tuple(number),
        [ClusterSet([number[t] for t in texts], labels) for texts, labels in sets],
    )
    return [(task_name(place), task)]


def sides(task: Clustering) -> tuple[Side, ...]:
    """Return the texts to embed."""
    return (Side(task.texts, "clustering", task_type="Clustering"),)


def counts(task: Clustering) -> dict[str, int]:
    """Count what is measured."""
    return {
        "texts": sum(len(each.texts) for each in task.sets),
        "sets": len(task.sets),
        "labels": len({label for each in task.sets for label in each.labels}),
    }


def score(task: Clustering, texts: Float32[np.ndarray, "n E"]) -> dict[str, float]:
    """Cluster each set.

    Returns:
        The V-measure, 1 where clusters and labels are the same, averaged over sets.
    """
    cluster, metrics = extra("sklearn.cluster"), extra("sklearn.metrics")
    values = []
    for each in task.sets:
        kmeans = cluster.MiniBatchKMeans(
            n_clusters=len(set(each.labels)),
            batch_size=BATCH,
            n_init="auto",
            random_state=SEED,
        )
        found = kmeans.fit(texts[list(each.texts)]).labels_
        values.append(metrics.v_measure_score(each.labels, found))
    return {"v_measure": float(np.mean(values))}
