"""Exact search beside faiss's flat index: the same vectors, queries and cores.

    python benchmarks/search.py [--documents 1000000 --queries 10000 --rounds 3]

Both take turns in one process; figures are medians.
"""

import argparse
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable

import faiss
import jax
import numpy as np

from nomic_jax.search import nearest

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


def timed(work: Callable[[], tuple]) -> tuple[float, tuple]:
    """Return the seconds that a search takes, and what it finds."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


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


def main() -> None:
    """Print a table of seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    packages = ("jax", "faiss-cpu", "numpy")
    versions = [f"{p} {importlib.metadata.version(p)}" for p in packages]
    device = jax.local_devices()[0].device_kind
    print(f"{platform.processor()}, {device}, {options.threads} threads of faiss")
    print(", ".join([f"Python {platform.python_version()}", *versions]), flush=True)
    documents = unit_rows(options.documents, options.width, 0)
    queries = unit_rows(options.queries, options.width, 1)
    index = faiss.IndexFlatIP(options.width)
    index.add(documents)  # a copy
    size = f"{options.documents:,} x {options.width}, {options.queries:,} queries"
    print(f"\n{size}; seconds\n\n| k | nomic_jax | faiss | ratio | same places |")
    print("|---|---|---|---|---|", flush=True)
    for k in options.k:
        nearest(queries, documents[: len(documents) // 10], k=k)  # compiles
        ours, theirs, same = [], [], 1.0
        for number in range(options.rounds):
            seconds, found = timed(lambda k=k: nearest(queries, documents, k=k))
            ours.append(seconds)
            seconds, other = timed(lambda k=k: index.search(queries, k))
            theirs.append(seconds)
            same = min(same, check_same(found, other))
            print(f"round {number}: {ours[-1]:.1f} {theirs[-1]:.1f}", flush=True)
        mine, beside = statistics.median(ours), statistics.median(theirs)
        print(
            f"| {k} | {mine:.1f} | {beside:.1f} | {beside / mine:.2f} | {same:.5f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
