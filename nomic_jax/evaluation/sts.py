"""Semantic textual similarity: does cosine order sentence pairs as people do?

Spearman's rank correlation of cosine similarity and human scores, as the STS Benchmark
is reported (Cer et al. 2017, arXiv:1708.00055; MTEB, arXiv:2210.07316).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Real

from nomic_jax.evaluation.extras import extra


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences and how similar people found them."""

    sentence1: tuple[str, ...]
    sentence2: tuple[str, ...]
    scores: tuple[float, ...]  # any scale; only their order counts


def read_sts(path: str | Path) -> SentencePairs:
    """Read a JSONL file of `sentence1`, `sentence2` and `score`.

    Raises:
        ValueError: the file is missing or empty, or a line is not such a record; the
            file and the line are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} is not a file; a JSONL file of sentence pairs is needed"
        )
    records = [
        _record(line, f"{path}:{number}")
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
        if line.strip()
    ]
    if not records:
        raise ValueError(f"{path} holds no sentence pair")
    first, second, scores = zip(*records, strict=True)
    return SentencePairs(first, second, scores)


def _record(line: bytes, place: str) -> tuple[str, str, float]:
    """Parse one line.

    Raises:
        ValueError: with the place and what is wrong there.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error.msg}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: a JSON object is needed, not {line[:40].decode()}")
    for name in ("sentence1", "sentence2"):
        text = record.get(name)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: {name} must be a text that is not empty")
    score = record.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"{place}: score must be a number, not {score!r}")
    if not math.isfinite(score):
        raise ValueError(f"{place}: score must be finite, not {score}")
    return record["sentence1"], record["sentence2"], float(score)


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
    return float(extra("scipy.stats").spearmanr(cosine, gold).statistic)
