"""What a task has embedded: lists of texts, each with the prompt that it gets.

Prompts by kind of task are those of Nomic's own MTEB results (arXiv:2402.01613, section
5.3): `classification` for classification, pair classification, similarity and
reranking, `clustering` for clustering, `search_query` and `search_document` for
retrieval.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Side:
    """Texts that are embedded alike."""

    texts: Sequence[str]
    prompt: str  # name of a task's prompt, as in `EmbeddingConfig.prompts`
    calibrates: bool = True  # its embeddings give the ranges of int8 codes


def numbered(texts: Iterable[str]) -> Mapping[str, int]:
    """Number texts by first appearance, so that equal ones are embedded once."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}
