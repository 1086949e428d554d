"""The kinds of tasks, and how each is read, embedded and scored: one table.

A task is named KIND:PLACE, as in `retrieval:beir/nfcorpus` or `sts:stsb-dev.jsonl`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nomic_jax.config import did_you_mean
from nomic_jax.evaluation.kinds import (
    beir,
    classification,
    clustering,
    long_context,
    pair_classification,
    reranking,
    retrieval,
    sts,
)
from nomic_jax.evaluation.records import Side


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is done with the tasks of a kind; functions are of the kind's own data."""

    place: str  # what is behind the colon
    read: Callable[[str], Sequence[tuple[str, Any]]]  # names and data of its tasks
    sides: Callable[[Any], Sequence[Side]]
    counts: Callable[[Any], Mapping[str, int]]
    score: Callable[..., dict[str, float]]  # of the data and each side's embeddings
    main: str  # the metric that plots show
    unit_length: bool = True  # embeddings are scaled to length 1


def _retrieval(place: str, read: Callable[[str], Sequence[tuple[str, Any]]]) -> Kind:
    return Kind(
        place, read, retrieval.sides, retrieval.counts, retrieval.score, "ndcg@10"
    )


KINDS: Mapping[str, Kind] = {
    "retrieval": _retrieval("FOLDER or FOLDER:SPLIT in BEIR's layout", beir.read_beir),
    "sts": Kind(
        "FILE of sentence1, sentence2, score",
        *(sts.read_sts_task, sts.sides, sts.counts, sts.score),
        main="spearman",
    ),
    "classification": Kind(
        "FOLDER or FOLDER:SPLIT of train and test files with text, label",
        classification.read_classification,
        classification.sides,
        classification.counts,
        classification.score,
        main="accuracy",
        unit_length=False,
    ),
    "clustering": Kind(
        "FILE of text, label",
        clustering.read_clustering,
        clustering.sides,
        clustering.counts,
        clustering.score,
        main="v_measure",
    ),
    "pair_classification": Kind(
        "FILE of sentence1, sentence2, label",
        pair_classification.read_pair_classification,
        pair_classification.sides,
        pair_classification.counts,
        pair_classification.score,
        main="average_precision",
    ),
    "reranking": Kind(
        "FILE of query, positive, negative",
        reranking.read_reranking,
        reranking.sides,
        reranking.counts,
        reranking.score,
        main="map",
    ),
    "loco": _retrieval(
        "FOLDER or FOLDER:DATASET in LoCo's layout", long_context.read_loco
    ),
    "summaries": _retrieval(
        "FILE of transcript, queries or of input, output", long_context.read_summaries
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model is measured on, read and checked."""

    kind: str  # in KINDS
    name: str  # short, and no other task's of the same run
    place: str  # it was read from
    data: Any  # the kind's own

    @property
    def sides(self) -> Sequence[Side]:
        """The texts to embed."""
        return KINDS[self.kind].sides(self.data)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of what there are, and what was left out."""
        return KINDS[self.kind].counts(self.data)

    @property
    def main(self) -> str:
        """The metric that stands for the task."""
        return KINDS[self.kind].main


def open_tasks(places: Sequence[str]) -> tuple[Task, ...]:
    """Read and check tasks, before any model is loaded.

    Args:
        places: KIND:PLACE of each; tasks are called after their files or folders.

    Raises:
        ValueError: a kind is unknown, a place is missing, or what is there cannot be
            measured, or two tasks have one name; one line says what and where.
    """
    found: list[Task] = []
    for given in places:
        name, colon, place = given.partition(":")
        if name not in KINDS:
            hint = did_you_mean(name, KINDS)
            raise ValueError(f"task {given!r} is of an unknown kind {name!r}: {hint}")
        kind = KINDS[name]
        if not colon or not place:
            raise ValueError(f"task {given!r} has no place; give {name}:{kind.place}")
        found += [Task(name, each, place, data) for each, data in kind.read(place)]
    first: dict[str, Task] = {}
    for task in found:
        if (earlier := first.setdefault(task.name, task)) is not task:
            raise ValueError(
                f"{earlier.kind}:{earlier.place} and {task.kind}:{task.place} are both "
                f"called {task.name!r}; leave one out, or measure it into another --out"
            )
    return tuple(found)
