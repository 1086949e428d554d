"""The pairs that a stage of curation takes, and the embedder that judges them.

Pairs come from an earlier stage or from files; the embedder may have its own prompts.
"""

import dataclasses

from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig
from nomic_jax.data.sources.contrastors import NamedPairs
from nomic_jax.data.sources.pairs import PairColumns
from nomic_jax.data.sources.registry import open_source
from nomic_jax.data.sources.source import check_distinct
from nomic_jax.data.store.manifest import PAIRS
from nomic_jax.data.store.records import PairRule
from nomic_jax.data.store.stage import plan_sources, read_entries
from nomic_jax.data.store.store import open_stores
from nomic_jax.inference.embedder import Embedder
from nomic_jax.storage import join


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePairs:
    """Where pairs come from, and how those that are left are tokenised."""

    stage: str = ""  # the prepare or filter stage whose training pairs these are
    places: tuple[str, ...] = ()  # or files, patterns, shards and data YAMLs of pairs
    query_prefix: str = NOMIC_PROMPTS["search_query"]  # of places without a data YAML
    document_prefix: str = NOMIC_PROMPTS["search_document"]  # the same
    query_length: int = 0  # tokens; longer queries are cut; 0: as the stage cuts them
    document_length: int = 0  # tokens; longer documents are cut; 0: the same
    workers: int = 1  # processes that tokenise

    def __post_init__(self) -> None:
        """Refuse pairs from nowhere or from two sides, and places without lengths.

        Raises:
            ValueError: with what is given.
        """
        if bool(self.stage) == bool(self.places):
            raise ValueError(
                f"stage={self.stage!r} and places={self.places}: pairs come from one, "
                "a stage before this one or places"
            )
        shortest = min(self.query_length, self.document_length)
        if shortest < 0 or (self.places and shortest < 3):
            raise ValueError(
                f"query_length={self.query_length}, document_length="
                f"{self.document_length}: texts of places need 3 tokens or more"
            )
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1")


def pairs_of(data: StagePairs, out: str) -> list[NamedPairs]:
    """Open the sources of a stage's pairs.

    Args:
        data: of the stage.
        out: the run's folder, which holds the stage before it.

    Raises:
        ValueError: a place holds no pairs, two sources share a name, or the stage
            before left none.
    """
    if data.places:
        rule = PairRule(
            query_prefix=data.query_prefix,
            document_prefix=data.document_prefix,
            query_length=data.query_length,
            document_length=data.document_length,
        )
        planned = plan_sources(data.places, rule)
        check_distinct([source.name for source, _ in planned])
        return [
            NamedPairs(source, own.columns, own.query_prefix, own.document_prefix)
            for source, own in planned
            if isinstance(own, PairRule)
        ]
    folder = join(out, data.stage)
    entries = read_entries(folder)
    if not entries:
        raise ValueError(
            f"{data.stage} tokenised its pairs where they lie and kept no text; name "
            "the same places here"
        )
    return [
        NamedPairs(
            open_source(join(folder, entry.text), entry.name),
            PairColumns(),
            entry.query_prefix,
            entry.document_prefix,
        )
        for entry in entries
    ]


def lengths_of(data: StagePairs, out: str) -> tuple[int, int]:
    """Return at how many tokens queries and documents are cut.

    Args:
        data: of the stage.
        out: the run's folder, which holds the stage before it.
    """
    if data.query_length and data.document_length:
        return data.query_length, data.document_length
    stores = open_stores(join(out, data.stage, PAIRS))
    rule = next(iter(stores.values())).manifest.rule
    return (
        data.query_length or rule["query_length"],
        data.document_length or rule["document_length"],
    )


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
