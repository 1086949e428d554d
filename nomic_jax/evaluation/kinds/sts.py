"""Semantic textual similarity: does cosine order sentence pairs as people do?

Spearman's rank correlation of cosine similarity and human scores, as the STS Benchmark
is reported (Cer et al. 2017, arXiv:1708.00055; MTEB, arXiv:2210.07316); Pearson's
next to it.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Real

from nomic_jax.data.sources.source import Row
from nomic_jax.evaluation.records import (
    Side,
    extra,
    numbered,
    one_text,
    read_records,
    task_name,
)


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences and how similar people found them."""

    sentence1: tuple[str, ...]
    sentence2: tuple[str, ...]
    scores: tuple[float, ...]  # any scale


def read_sts(path: str | Path) -> SentencePairs:
    """Read a file of `sentence1`, `sentence2` and `score`, JSON Lines or Parquet.

    Raises:
        ValueError: the file is missing or empty, or a line is not such a record; the
            file and the line are named.
    """
    records = [_record(row, place) for place, row in read_records(str(path))]
    first, second, scores = zip(*records, strict=True)
    return SentencePairs(first, second, scores)


def read_sts_task(place: str) -> list[tuple[str, SentencePairs]]:
    """Read a file, named as itself; see `read_sts`.

    Raises:
        ValueError: as `read_sts`, or all scores are equal.
    """
    pairs = read_sts(place)
    if len(set(pairs.scores)) < 2:
        raise ValueError(
            f"{place}: all {len(pairs.scores)} scores are {pairs.scores[0]}; there is "
            "no order"
        )
    return [(task_name(place), pairs)]


def _record(row: Row, place: str) -> tuple[str, str, float]:
    """Take a record apart.

    Raises:
        ValueError: with the place and what is wrong there.
    """
    first, second = (one_text(row, (f"sentence{i}",), place) for i in (1, 2))
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"{place}: score must be a number, not {score!r}")
    if not math.isfinite(score):
        raise ValueError(f"{place}: score must be finite, not {score}")
    return first, second, float(score)


def sides(task: SentencePairs) -> tuple[Side, ...]:
    """Return the texts to embed: every sentence once."""
    return (Side(tuple(_numbers(task)), "classification", task_type="STS"),)


def counts(task: SentencePairs) -> dict[str, int]:
    """Count what is measured."""
    return {"pairs": len(task.scores), "texts": len(_numbers(task))}


def score(task: SentencePairs, texts: Float32[np.ndarray, "n E"]) -> dict[str, float]:
    """Correlate cosine with the scores people gave."""
    number = _numbers(task)
    first, second = (
        texts[[number[sentence] for sentence in side]]
        for side in (task.sentence1, task.sentence2)
    )
    cosine = _cosine(first, second, task.scores)
    pearson = extra("scipy.stats").pearsonr(cosine, task.scores).statistic
    return {
        "spearman": spearman(first, second, task.scores),
        "pearson": float(pearson),
    }


def _numbers(task: SentencePairs) -> dict[str, int]:
    return dict(numbered((*task.sentence1, *task.sentence2)))


def spearman(
    embeddings1: Float[np.ndarray, "n E"],
    embeddings2: Float[np.ndarray, "n E"],
    gold: Sequence[float] | Real[np.ndarray, "n"],
) -> float:
    """Correlate the ranks of cosine similarity and of human scores; ties share a rank.

    Args:
        embeddings1: of each pair's first sentence, of any length but zero.
        embeddings2: of the second.
        gold: the human score of each pair.

    Returns:
        A value in [-1, 1].

    Raises:
        ValueError: the numbers differ, a vector is zero or not finite, or all
            similarities or all scores are equal, so that there is no order.
    """
    cosine = _cosine(embeddings1, embeddings2, gold)
    return float(extra("scipy.stats").spearmanr(cosine, gold).statistic)


def _cosine(
    embeddings1: Float[np.ndarray, "n E"],
    embeddings2: Float[np.ndarray, "n E"],
    gold: Sequence[float] | Real[np.ndarray, "_"],
) -> Float64[np.ndarray, "n"]:
    """Compare pairs, and refuse what has no order; see `spearman`."""
    first = np.asarray(embeddings1, np.float64)
    second = np.asarray(embeddings2, np.float64)
    if not len(first) == len(second) == len(gold):
        raise ValueError(
            f"{len(first)} and {len(second)} embeddings for {len(gold)} scores; "
            "one pair a score is needed"
        )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    if bad := int(np.sum(~np.isfinite(lengths) | (lengths == 0))):
        raise ValueError(
            f"{bad} of {len(first)} pairs hold a zero or not finite vector"
        )
    cosine = np.einsum("ne,ne->n", first, second) / lengths
    for what, values in (("similarities", cosine), ("scores", np.asarray(gold))):
        if len(np.unique(values)) < 2:
            raise ValueError(f"all {len(values)} {what} are equal; there is no order")
    return cosine
