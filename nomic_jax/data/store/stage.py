"""The prepare stage: collect text, hold a part out, train a tokenizer, tokenise.

    texts.jsonl   train/SOURCE.jsonl   held_out/SOURCE.jsonl   sources.json
    text/         packed rows, a token store       pairs/   a store for each source

Sources of any size are named by their paths. They are tokenised where they are, and
nothing is held out:

    text/   packed rows, a store of each source       pairs/   a store of each source
"""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nomic_jax.config import NOMIC_PROMPTS
from nomic_jax.data.sources.contrastors import read_data_yaml
from nomic_jax.data.sources.files import matching
from nomic_jax.data.sources.installed_python import python_corpus
from nomic_jax.data.sources.jsonl import JsonLines, read_pairs, write_pairs, write_texts
from nomic_jax.data.sources.lines import Split
from nomic_jax.data.sources.pairs import (
    PairSource,
    fingerprint,
    split_held_out,
    stable_hash,
)
from nomic_jax.data.sources.registry import is_data_yaml, open_source
from nomic_jax.data.sources.source import Source
from nomic_jax.data.sources.tables import ParquetRows
from nomic_jax.data.store.manifest import PAIRS, TEXT
from nomic_jax.data.store.prepare import prepare_collection, write_tokenizer
from nomic_jax.data.store.records import PairRule, RowRule, Rule
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.storage import exists, join, read_here, read_json, write_json

_logger = logging.getLogger(__name__)


def plan_sources(
    places: Sequence[str],
    rule: Rule,
    *,
    name: str | None = None,
    split: Split = "lines",
    honour_query_only: bool = False,
) -> list[tuple[Source, Rule]]:
    """Open sources, each with the rule by which its rows become records.

    Args:
        places: as `open_source` takes them; of pairs also data YAMLs (.yaml), which
            bring their own prefixes and columns.
        rule: of sources that bring none, and the lengths and policies of all.
        name: of the one source; those of files and data YAMLs where not given.
        split: as for `open_source`.
            Negatives are stored of those entries of a data YAML that have any.
        honour_query_only: leave documents of sources marked `query_only` without
            prefix. Nomic Embed v1 ignored the mark.

    Raises:
        ValueError: a place holds no source, a name is given for several, or negatives
            are asked for and no entry of a data YAML has any.
    """
    lists = [place for place in places if is_data_yaml(place)]
    if name is not None and (len(places) != 1 or lists):
        raise ValueError(
            f"the name {name!r} is for one source, and {len(places)} places are given"
            + (", of which a data YAML names its own" if lists else "")
        )
    planned: list[tuple[Source, Rule]] = []
    for place in places:
        if place not in lists or not isinstance(rule, PairRule):
            source = open_source(place, name, split=split)
            if isinstance(source, ParquetRows):
                source = source.restricted(rule.needed_columns)
            planned.append((source, rule))
            continue
        for entry in read_data_yaml(place):
            has_negatives = entry.columns.negatives is not None
            if has_negatives and not rule.num_negatives:
                _logger.warning(
                    "%s: its negatives (column %r) are not stored; --num-negatives "
                    "says how many to store with each pair",
                    entry.source.name,
                    entry.columns.negatives,
                )
            bare = honour_query_only and entry.query_only
            own = dataclasses.replace(
                rule,
                columns=entry.columns,
                num_negatives=rule.num_negatives if has_negatives else 0,
                query_prefix=entry.query_prefix,
                document_prefix="" if bare else entry.document_prefix,
            )
            planned.append((entry.source, own))
    rules = [own for _, own in planned if isinstance(own, PairRule)]
    if rules and isinstance(rule, PairRule) and rule.num_negatives:
        if not any(own.num_negatives for own in rules):
            raise ValueError(
                f"num_negatives={rule.num_negatives} and no entry of "
                f"{', '.join(lists)} has a column of negatives; leave it out"
            )
    return planned


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


SOURCES = "sources.json"  # written last, so that its presence says all is there
PYTHON = "python"  # stands for this installation's sources where a file may stand


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Where a run's text comes from, and what is held out of it."""

    # "python": this installation's sources; else a JSONL file of pairs, or a pattern
    # of such files, `pairs/*.jsonl.gz`, each of which is a source of its own.
    pairs: str
    held_out: int = 1000  # pairs of a source kept for evaluation, at most
    held_out_share: float = 0.1  # of a file's pairs, for evaluation
    limit: int = 20_000  # training pairs of a source, and texts of it, at most
    tokenizer: str = ""  # folder or hub id; empty: one is trained on the text
    vocab_size: int = 8192  # tokens of the WordPiece vocabulary that is trained
    row_length: int  # tokens of a packed row of the MLM's text
    query_length: int  # tokens; longer queries are cut
    document_length: int  # tokens; longer documents are cut
    seed: int = 0  # of what is held out of a file
    workers: int = 1  # processes that tokenise

    def __post_init__(self) -> None:
        """Refuse numbers that no corpus can meet.

        Raises:
            ValueError: a count is not positive, or the share is outside (0, 1).
        """
        for name in ("held_out", "limit", "vocab_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share={self.held_out_share} must be in (0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareStage:
    """Tokenise: a small corpus with a part of it held out, or sources of any size."""

    name: str
    data: PrepareConfig | PlacesConfig


def prepare_corpus(
    config: PrepareConfig, folder: Path, *, tokenizer: TextTokenizer | None = None
) -> None:
    """Write the stage's files, `SOURCES` last.

    Args:
        config: where the text comes from.
        folder: of the stage.
        tokenizer: the one that `config.tokenizer` names; None: one is trained.

    Raises:
        ValueError: the text is not as it should be, or too little.
    """
    if config.pairs == PYTHON:
        corpus = python_corpus(
            max_held_out=config.held_out,
            min_held_out=min(1000, config.held_out),
            max_pairs=config.limit,
            max_texts=config.limit,
        )
        train, held_out, texts = corpus.train, corpus.held_out, corpus.texts
    else:
        train, held_out, texts = _own_corpus(config)
    if tokenizer is None:
        tokenizer = TextTokenizer.train(texts, vocab_size=config.vocab_size)
    for name in (TEXT, PAIRS):  # of an earlier try that did not end
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_texts(folder / "texts.jsonl", texts)
    for source in held_out:
        write_pairs(folder / "held_out" / f"{source.name}.jsonl", source.pairs)
    documents = JsonLines.open(folder / "texts.jsonl", name="text")
    prepare_collection(
        # One range: all but the last, incomplete row is kept.
        [(documents, RowRule(row_length=config.row_length, rows_per_range=len(texts)))],
        tokenizer,
        folder / TEXT,
        workers=config.workers,
    )
    write_training_pairs(
        folder,
        train,
        tokenizer,
        query_length=config.query_length,
        document_length=config.document_length,
        workers=config.workers,
    )
    write_sources(folder, train, fingerprint=fingerprint((*train, *held_out), texts))


def _own_corpus(
    config: PrepareConfig,
) -> tuple[tuple[PairSource, ...], tuple[PairSource, ...], list[str]]:
    """Read one's own files: pairs to train on, those held out, and the MLM's texts."""
    train, held_out = [], []
    for file in matching(config.pairs):
        kept, out = split_held_out(
            read_pairs(Path(file)),
            share=config.held_out_share,
            seed=config.seed,
            at_most=config.held_out,
        )
        chosen = sorted(kept.pairs, key=lambda p: stable_hash(p.query + p.document))
        train.append(dataclasses.replace(kept, pairs=chosen[: config.limit]))
        held_out.append(out)
    # A text that several pairs share is read once; a held-out one, never.
    unseen = {
        text for out in held_out for p in out.pairs for text in (p.query, p.document)
    }
    texts: dict[str, None] = {}
    for source in train:
        own = [text for p in source.pairs for text in (p.query, p.document)]
        new = [t for t in dict.fromkeys(own) if t not in unseen and t not in texts]
        texts |= dict.fromkeys(new[: config.limit])
    return tuple(train), tuple(held_out), list(texts)


def write_training_pairs(
    folder: Path,
    sources: Sequence[PairSource],
    tokenizer: TextTokenizer,
    *,
    query_length: int,
    document_length: int,
    num_negatives: int = 0,
    workers: int = 1,
) -> None:
    """Write pairs as text, to be mined, and as token stores, to be trained on.

    Args:
        folder: of the stage.
        sources: the pairs, with their prefixes.
        tokenizer: whose ids the stores hold.
        query_length: tokens; longer queries are cut.
        document_length: tokens; longer documents and negatives are cut.
        num_negatives: hard negatives of each pair, in the stores.
        workers: processes that tokenise.
    """
    planned = []
    for source in sources:
        path = folder / "train" / f"{source.name}.jsonl"
        write_pairs(path, source.pairs)
        rule = PairRule(
            query_prefix=source.query_prefix,
            document_prefix=source.document_prefix,
            query_length=query_length,
            document_length=document_length,
            num_negatives=num_negatives,
        )
        planned.append((JsonLines.open(path, name=source.name), rule))
    prepare_collection(planned, tokenizer, folder / PAIRS, workers=workers)


@dataclasses.dataclass(frozen=True)
class SourceEntry:
    """A source of pairs that a stage leaves, as its folder describes it."""

    name: str
    query_prefix: str
    document_prefix: str
    pairs: int
    text: str  # file or folder of shards below the stage's folder

    @classmethod
    def of(cls, source: PairSource) -> "SourceEntry":
        """Describe a source whose pairs `write_training_pairs` wrote."""
        prefixes = (source.query_prefix, source.document_prefix)
        return cls(source.name, *prefixes, len(source), f"train/{source.name}.jsonl")


def write_sources(
    folder: str | Path,
    sources: Sequence[PairSource | SourceEntry],
    *,
    fingerprint: str,
) -> None:
    """Write what files of pairs do not say: names, prefixes, counts, where they are."""
    entries = [
        source if isinstance(source, SourceEntry) else SourceEntry.of(source)
        for source in sources
    ]
    listed = [dataclasses.asdict(entry) for entry in entries]
    write_json(join(folder, SOURCES), {"fingerprint": fingerprint, "sources": listed})


def read_entries(folder: str | Path) -> tuple[SourceEntry, ...]:
    """Read what a stage's folder says of its sources."""
    value = read_json(join(folder, SOURCES))
    return tuple(SourceEntry(**entry) for entry in value["sources"])


def read_sources(folder: str | Path, part: str) -> tuple[PairSource, ...]:
    """Read the sources of a stage's folder, the part `train` or `held_out`."""
    entries = read_entries(folder)
    if not entries:  # of places, whose text stays where it is
        return ()
    with read_here(join(folder, part)) as texts:
        return tuple(
            read_pairs(
                texts / f"{entry.name}.jsonl",
                query_prefix=entry.query_prefix,
                document_prefix=entry.document_prefix,
            )
            for entry in entries
        )


def is_prepared(folder: str | Path) -> bool:
    """Say whether a stage that makes sources has finished in this folder."""
    return exists(join(folder, SOURCES))
