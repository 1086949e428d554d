"""BM25, the lexical baseline, as the library bm25s computes it with its own defaults.

Robertson and Zaragoza 2009, The Probabilistic Relevance Framework: here Lucene's form
with k1 = 1.5 and b = 0.75. Words are runs of two or more letters, digits or underscores
in lower case, without English stop words and without stemming.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from nomic_jax.evaluation.extras import extra
from nomic_jax.evaluation.metrics import ranking_metrics
from nomic_jax.evaluation.retrieval import DEPTH, Ranking, RetrievalTask


def rank_bm25(task: RetrievalTask, *, depth: int = DEPTH) -> Ranking:
    """Rank documents by BM25, ties by lower number.

    Documents that share no word with a query score 0.
    """
    depth = min(depth, len(task.documents))
    scores = np.empty((len(task.queries), depth), np.float32)
    documents = np.empty((len(task.queries), depth), np.int32)
    corpus = _words(task.documents)
    index = extra("bm25s").BM25()
    if any(corpus):  # the library has no index of nothing
        index.index(corpus, show_progress=False)
    for row, words in enumerate(_words(task.queries)):
        every: Float32[np.ndarray, "M"] = np.zeros(len(corpus), np.float32)
        if words and any(corpus):
            every = index.get_scores(words)
        # The library's own top-k leaves the order of equal scores open.
        documents[row] = np.argsort(-every, kind="stable")[:depth]
        scores[row] = every[documents[row]]
    return Ranking(scores, documents)


def evaluate_bm25(task: RetrievalTask) -> dict[str, float]:
    """Measure BM25 on a task as `retrieval.evaluate` measures embeddings."""
    return ranking_metrics(rank_bm25(task).documents, task.relevant)


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Split texts as the library's tokenizer does by default."""
    return extra("bm25s").tokenize(list(texts), return_ids=False, show_progress=False)
