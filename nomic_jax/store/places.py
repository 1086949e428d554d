"""The prepare stage on sources of any size: tokenised where they lie, nothing held out.

text/   packed rows, a store of each source       pairs/   a store of each source
"""

import dataclasses
from typing import Literal

from nomic_jax.config import NOMIC_PROMPTS
from nomic_jax.storage import join
from nomic_jax.store.collection import PAIRS, TEXT
from nomic_jax.store.planned import plan_sources
from nomic_jax.store.prepare import prepare_collection, write_tokenizer
from nomic_jax.store.rules import PairRule, RowRule
from nomic_jax.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacesConfig:
    """Which sources a run tokenises, as `nomic-jax prepare` takes them."""

    tokenizer: str  # folder or hub id
    text: tuple[str, ...] = ()  # files, patterns, tfds:..., hf:... of documents
    text_column: str = "text"  # of the documents
    row_length: int = 0  # tokens of a packed row of the documents
    pairs: tuple[str, ...] = ()  # the same of pairs, or data YAMLs
    query_prefix: str = NOMIC_PROMPTS[
        "search_query"
    ]  # of pairs that no data YAML describes
    document_prefix: str = NOMIC_PROMPTS["search_document"]  # the same
    query_length: int = 0  # tokens; longer queries are cut
    document_length: int = 0  # tokens; longer documents are cut
    num_negatives: int = 0  # stored with each pair: the first ones it has
    # what pairs with fewer meet; repeat goes through theirs again
    too_few_negatives: Literal["error", "drop", "repeat"] = "error"
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
    workers: int = 1  # processes that tokenise

    def __post_init__(self) -> None:
        """Refuse no source at all, and sources without their lengths.

        Raises:
            ValueError: with what to give.
        """
        if not self.text and not self.pairs:
            raise ValueError("neither text nor pairs: name what is to be prepared")
        for sources, names in (
            ("text", ("row_length",)),
            ("pairs", ("query_length", "document_length")),
        ):
            given = {name: getattr(self, name) for name in names}
            told = ", ".join(f"{name}={value}" for name, value in given.items())
            if getattr(self, sources) and min(given.values()) < 3:
                raise ValueError(f"{told}: {sources} in rows of less than 3 tokens")
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1")


def prepare_places(config: PlacesConfig, folder: str, tokenizer: TextTokenizer) -> None:
    """Tokenise the sources, or go on where that was stopped.

    Args:
        config: which sources.
        folder: of the stage, local or at a URL.
        tokenizer: the one that `config.tokenizer` names.

    Raises:
        ValueError: a source cannot be read, or a row of it is not as it should be.
    """
    if config.text:
        rule = RowRule(
            row_length=config.row_length, column=config.text_column, blank=config.blank
        )
        prepare_collection(
            plan_sources(config.text, rule),
            tokenizer,
            join(folder, TEXT),
            workers=config.workers,
        )
    if config.pairs:
        rule = PairRule(
            query_prefix=config.query_prefix,
            document_prefix=config.document_prefix,
            query_length=config.query_length,
            document_length=config.document_length,
            num_negatives=config.num_negatives,
            too_few_negatives=config.too_few_negatives,
            blank=config.blank,
        )
        prepare_collection(
            plan_sources(config.pairs, rule),
            tokenizer,
            join(folder, PAIRS),
            workers=config.workers,
        )
    write_tokenizer(tokenizer, folder)
