"""Exact search beside faiss's flat index: the same vectors, queries and cores.

    python benchmarks/search.py [--documents 1000000 --queries 10000 --rounds 3]

Both take turns in one process; figures are medians.
"""

import argparse
import statistics
from typing import Any

import faiss
import numpy as np
from environment import environment
from record import Row, record
from turns import in_turns, median_ratio

from nomic_jax.inference import top_k

ROUNDING = 2e-6  # float32 sums of 768 terms whose squares sum to 1, each way


def unit_rows(number: int, width: int, seed: int) -> np.ndarray:
    """Draw directions at random, a part at a time, to need no second copy."""
    random = np.random.default_rng(seed)
    rows = np.empty((number, width), np.float32)
    for start in range(0, number, 100_000):
        part = rows[start : start + 100_000]
        random.standard_normal(part.shape, dtype=np.float32, out=part)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def check_same(ours: tuple, theirs: tuple) -> float:
    """Refuse other neighbours than faiss's, but for those that score the same.

    Returns:
        The share of places in which the same document stands.
    """
    (scores, indices), (other_scores, other_indices) = ours, theirs
    np.testing.assert_allclose(scores, other_scores, atol=ROUNDING)
    differ = indices != other_indices
    for row in np.flatnonzero(differ.any(axis=1)):
        lowest = scores[row, -1] + 2 * ROUNDING
        inside = scores[row] > lowest  # the last may change with one outside
        assert set(indices[row][inside]) <= set(other_indices[row]), row
    return 1 - float(differ.mean())


def measure(
    queries: np.ndarray, documents: np.ndarray, index: Any, k: int, rounds: int
) -> Row:
    """Search with both, in turns, and compare what they find."""
    found = {}

    def ours() -> None:
        found["ours"] = top_k(queries, documents, k=k)

    def theirs() -> None:
        found["theirs"] = index.search(queries, k)

    seconds = in_turns({"ours": ours, "theirs": theirs}, rounds)
    size = f"{len(documents):,} x {documents.shape[1]}, {len(queries):,} queries"
    return Row(
        work="exact search",
        detail=f"{size}, k = {k}",
        ours=statistics.median(seconds["ours"]),
        theirs=statistics.median(seconds["theirs"]),
        unit="s",
        beside="faiss IndexFlatIP",
        ratio=median_ratio(seconds["theirs"], seconds["ours"]),
        extra={"same places": check_same(found["ours"], found["theirs"])},
    )


def main() -> None:
    """Measure each k and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of faiss")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    given = environment("faiss-cpu", "numpy")
    documents = unit_rows(options.documents, options.width, 0)
    queries = unit_rows(options.queries, options.width, 1)
    index = faiss.IndexFlatIP(options.width)
    index.add(documents)  # a copy
    for k in options.k:
        row = measure(queries, documents, index, k, options.rounds)
        record("search", [row], given)


if __name__ == "__main__":
    main()
