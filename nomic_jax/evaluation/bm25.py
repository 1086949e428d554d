"""BM25, the lexical baseline, as the library bm25s computes it with its own defaults.

Robertson and Zaragoza 2009, The Probabilistic Relevance Framework: here Lucene's form
with k1 = 1.5 and b = 0.75. Words are runs of two or more letters, digits or underscores
in lower case, without English stop words and without stemming.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from nomic_jax.evaluation.kinds.retrieval import (
    DEPTH,
    JudgedRetrieval,
    ranking_metrics,
    tie_order,
    without_own,
)
from nomic_jax.evaluation.records import extra


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best documents of each query, best first."""

    scores: Float32[np.ndarray, "Q k"]
    documents: Int[np.ndarray, "Q k"]  # by number


def rank_bm25(
    queries: Sequence[str], documents: Sequence[str], *, depth: int = DEPTH
) -> Ranking:
    """Rank documents by BM25, ties by lower number.

    Documents that share no word with a query score 0.
    """
    depth = min(depth, len(documents))
    scores = np.empty((len(queries), depth), np.float32)
    found = np.empty((len(queries), depth), np.int32)
    corpus = _words(documents)
    index = extra("bm25s").BM25()
    if any(corpus):  # the library has no index of nothing
        index.index(corpus, show_progress=False)
    for row, words in enumerate(_words(queries)):
        every: Float32[np.ndarray, "M"] = np.zeros(len(corpus), np.float32)
        if words and any(corpus):
            every = index.get_scores(words)
        # The library's own top-k leaves the order of equal scores open.
        found[row] = np.argsort(-every, kind="stable")[:depth]
        scores[row] = every[found[row]]
    return Ranking(scores, found)


def evaluate_bm25(task: JudgedRetrieval) -> dict[str, float]:
    """Measure BM25 on a task as `judged.score` measures embeddings."""
    order = tie_order(len(task.documents))
    shuffled = [task.documents[int(i)] for i in order]
    ranking = rank_bm25(task.queries, shuffled, depth=DEPTH + 1)
    found = without_own(order[ranking.documents], task.own)
    return ranking_metrics(found, task.relevance)


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Split texts as the library's tokenizer does by default."""
    return extra("bm25s").tokenize(list(texts), return_ids=False, show_progress=False)
