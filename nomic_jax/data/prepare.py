"""The prepare stage: collect text, hold a part of it out, train a tokenizer.

tokenizer.json  sources.json  texts.jsonl  train/SOURCE.jsonl  held_out/SOURCE.jsonl
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from nomic_jax.data.jsonl import read_pairs, read_texts, write_pairs, write_texts
from nomic_jax.data.python_sources import python_corpus
from nomic_jax.data.sources import PairSource, fingerprint, split_held_out, stable_hash
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.whole_file import write_json

PYTHON = "python"  # stands for this installation's sources where a file may stand


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Where a run's text comes from, and what is held out of it."""

    pairs: str  # "python": this installation's sources; else a JSONL file of pairs
    held_out: int = 1000  # pairs of a source kept for evaluation, at most
    held_out_share: float = 0.1  # of a JSONL file's pairs, for evaluation
    limit: int = 20_000  # training pairs of a source, and texts of the MLM, at most
    vocab_size: int = 8192  # tokens of the WordPiece vocabulary trained on the text
    seed: int = 0  # of what is held out of a JSONL file

    def __post_init__(self) -> None:
        """Refuse numbers that no corpus can meet.

        Raises:
            ValueError: a count is not positive, or the share is outside (0, 1).
        """
        for name in ("held_out", "limit", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share={self.held_out_share} must be in (0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareStage:
    """Collect text, hold a part of it out, train a tokenizer."""

    name: str
    data: PrepareConfig


def prepare(config: PrepareConfig, folder: Path) -> None:
    """Write the stage's files; `sources.json` comes last and says that it is done.

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
        kept, out = split_held_out(
            read_pairs(Path(config.pairs)),
            share=config.held_out_share,
            seed=config.seed,
            at_most=config.held_out,
        )
        chosen = sorted(kept.pairs, key=lambda p: stable_hash(p.query + p.document))
        train = (dataclasses.replace(kept, pairs=chosen[: config.limit]),)
        held_out = (out,)
        # A text that several pairs share is read once; a held-out one, never.
        unseen = {text for p in out.pairs for text in (p.query, p.document)}
        texts = [
            text
            for text in dict.fromkeys(
                text for p in train[0].pairs for text in (p.query, p.document)
            )
            if text not in unseen
        ][: config.limit]
    tokenizer = TextTokenizer.train(texts, vocab_size=config.vocab_size)
    tokenizer.save(folder)
    write_texts(folder / "texts.jsonl", texts)
    for part, sources in (("train", train), ("held_out", held_out)):
        for source in sources:
            write_pairs(folder / part / f"{source.name}.jsonl", source.pairs)
    write_sources(folder, train, fingerprint=fingerprint((*train, *held_out), texts))


def write_sources(
    folder: Path, sources: Sequence[PairSource], *, fingerprint: str
) -> None:
    """Write what the JSONL files of pairs do not say: names, prefixes, counts."""
    value = {
        "fingerprint": fingerprint,
        "sources": [
            {
                "name": source.name,
                "query_prefix": source.query_prefix,
                "document_prefix": source.document_prefix,
                "pairs": len(source),
            }
            for source in sources
        ],
    }
    # Its presence says that the stage is done, so it must not be there by halves.
    write_json(folder / "sources.json", value)


def read_sources(folder: Path, part: str) -> tuple[PairSource, ...]:
    """Read the sources of a stage's folder, the part `train` or `held_out`."""
    described = json.loads((folder / "sources.json").read_text())["sources"]
    return tuple(
        read_pairs(
            folder / part / f"{entry['name']}.jsonl",
            query_prefix=entry["query_prefix"],
            document_prefix=entry["document_prefix"],
        )
        for entry in described
    )


def is_prepared(folder: Path) -> bool:
    """Say whether a stage that makes sources has finished in this folder."""
    return (folder / "sources.json").is_file()


def read_documents(folder: Path) -> list[str]:
    """Read a finished prepare stage's documents for the masked language model."""
    return list(read_texts(folder / "texts.jsonl"))
