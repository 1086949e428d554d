"""An embedder with prefixes of one's own: a judge is asked as its makers say."""

import dataclasses

from nomic_jax.config import EmbeddingConfig
from nomic_jax.embedder import Embedder


def with_own_prompts(
    embedder: Embedder,
    query_prefix: str,
    document_prefix: str,
    *,
    max_length: int | None = None,
) -> Embedder:
    """Return an embedder of the same model whose tasks are `query` and `document`.

    Args:
        embedder: of any model; its own prompts are not used.
        query_prefix: put before queries as it stands; empty: nothing.
        document_prefix: put before documents.
        max_length: tokens; longer texts are cut. Where the model takes fewer, it keeps
            its own. None: the model's.
    """
    longest = embedder.config.max_length
    config = dataclasses.replace(
        embedder.config,
        prompts={"query": query_prefix, "document": document_prefix},
        max_length=longest if max_length is None else min(max_length, longest),
    )
    return embedder.replaced(config=config)


def search_prompts(config: EmbeddingConfig) -> tuple[str, str]:
    """Return a model's own prefixes of queries and of documents, empty without any."""
    query, document = (
        next((config.prompts[task] for task in tasks if task in config.prompts), "")
        for tasks in (
            ("search_query", "query"),
            ("search_document", "document", "passage"),
        )
    )
    return query, document
