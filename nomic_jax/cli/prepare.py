"""The command `nomic-jax prepare`: sources and rules that its options mean."""

import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from nomic_jax.cli.options import Number, Places, Text
from nomic_jax.config import NOMIC_PROMPTS

if TYPE_CHECKING:
    from nomic_jax.data.store.manifest import Manifest
    from nomic_jax.data.store.records import Rule


TEXT_ONLY = ("text",)
PAIRS_ONLY = ("query", "document", "negatives", "query_prefix", "document_prefix")
PAIRS_ONLY += ("query_only", "num_negatives", "too_few_negatives", "too_long")


def _cores() -> int:
    """Return the cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Tokenise sources once into stores that training reads at any step.

    A source is a .jsonl, .txt (both also .gz) or .parquet file or a pattern of them, a
    folder of shards, tfds:NAME:SPLIT, hf:FOLDER or a data YAML; files may be at URLs.
    The same command again goes on where it was stopped, and checks what is done.
    Give --row-length for text, --query-length and --document-length for pairs.
    """

    sources: Places  # a store is made of each
    out: str  # folder or URL of the stores; sources that are there already stay
    tokenizer: str  # folder or hub id
    name: Text = None  # of a single source and its store; None: that of its file
    row_length: Number = None  # text: tokens of a packed row
    query_length: Number = None  # pairs: tokens; longer queries are cut
    document_length: Number = None  # pairs: tokens; longer documents are cut
    text: str = "text"  # column of text
    split: Literal["lines", "paragraphs"] = "lines"  # what a document of a .txt is
    query: str = "query"  # column of queries
    document: str = "document"  # column of documents
    negatives: str = "negatives"  # column of hard negatives; rows may lack it
    query_prefix: str = NOMIC_PROMPTS["search_query"]  # before each query
    document_prefix: str = NOMIC_PROMPTS["search_document"]  # before each document
    query_only: Literal["ignore", "honour"] = "ignore"  # such marks of a data YAML
    num_negatives: int = 0  # stored with each pair: the first ones it has
    # what pairs with fewer meet; repeat goes through theirs again
    too_few_negatives: Literal["error", "drop", "repeat"] = "error"
    too_long: Literal["cut", "error"] = "cut"  # what texts over their length meet
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
    # of a source, in one shard; None: 100,000 of text, about a sixteenth of the pairs
    rows_per_shard: Number = None
    workers: int = _cores()  # processes
    beam: Text = None  # or on Apache Beam: --beam="--runner=FlinkRunner ..."


def prepare(options: Prepare) -> int:
    """Run `nomic-jax prepare`: a line for each store, as soon as it is made.

    Raises:
        ValueError: the input is wrong, or a file cannot be read or written.
    """
    from nomic_jax.data.sources.files import reason_of

    try:
        return _prepare(options)
    except OSError as error:
        place = error.filename or options.out
        raise ValueError(f"{place}: {reason_of(error)}") from error


def _prepare(options: Prepare) -> int:
    from nomic_jax.checkpoints.hub import resolve
    from nomic_jax.checkpoints.sentence_transformers import tokenizer_folder
    from nomic_jax.data.store.beam import prepare_on_beam
    from nomic_jax.data.store.prepare import prepare_collection, prepare_store
    from nomic_jax.data.store.stage import plan_sources
    from nomic_jax.data.tokenizer import TextTokenizer
    from nomic_jax.storage import check_out

    rule = _rule(options)
    _check(options)
    check_out(options.out)
    folder = tokenizer_folder(resolve(options.tokenizer, weights=False))
    tokenizer = TextTokenizer.from_folder(folder)
    planned = plan_sources(
        options.sources,
        rule,
        name=options.name,
        split=options.split,
        honour_query_only=options.query_only == "honour",
    )
    if options.beam is None:
        make_store = functools.partial(prepare_store, workers=options.workers)
    else:
        flags = shlex.split(options.beam)
        make_store = functools.partial(prepare_on_beam, pipeline_options=flags)

    def told(
        source: Any, rule: Any, tokenizer: Any, out: str, **more: Any
    ) -> "Manifest":
        manifest = make_store(source, rule, tokenizer, out, **more)
        print(f"{manifest.summary()}, in {out}", flush=True)
        return manifest

    prepare_collection(
        planned,
        tokenizer,
        options.out,
        make_store=told,
        records_per_shard=options.rows_per_shard,
    )
    return 0


def _check(options: Prepare) -> None:
    """Refuse options that have nothing to act on among the others and the sources.

    Raises:
        ValueError: there is one.
    """
    from nomic_jax.data.sources.registry import is_data_yaml

    if not any(re.search(r"\.txt(\.gz)?$", place) for place in options.sources):
        _refuse(options, ("split",), "no source is a .txt file")
    if not any(map(is_data_yaml, options.sources)):
        _refuse(options, ("query_only",), "no source is a data YAML")
    if not options.num_negatives:
        _refuse(options, ("too_few_negatives",), "--num-negatives stores none")
    if options.beam is not None:
        _refuse(options, ("workers",), "with --beam its runner says how many there are")


def _rule(options: Prepare) -> "Rule":
    from nomic_jax.data.sources.pairs import PairColumns
    from nomic_jax.data.store.records import PairRule, RowRule

    row = options.row_length
    query, document = options.query_length, options.document_length
    if row is not None and query is None and document is None:
        _refuse(options, PAIRS_ONLY, "text has none, and --row-length asks for text")
        per_range = options.rows_per_shard
        return RowRule(
            row_length=row,
            column=options.text,
            rows_per_range=RowRule.rows_per_range if per_range is None else per_range,
            blank=options.blank,
        )
    if row is not None or query is None or document is None:
        raise ValueError(
            "give --row-length for text, or --query-length and --document-length for "
            "pairs"
        )
    _refuse(options, TEXT_ONLY, "--query and --document name the columns of pairs")
    return PairRule(
        query_prefix=options.query_prefix,
        document_prefix=options.document_prefix,
        query_length=query,
        document_length=document,
        columns=PairColumns(options.query, options.document, options.negatives),
        num_negatives=options.num_negatives,
        too_few_negatives=options.too_few_negatives,
        too_long=options.too_long,
        blank=options.blank,
    )


def _refuse(options: Prepare, names: Sequence[str], why: str) -> None:
    """Refuse options that would change nothing.

    Raises:
        ValueError: one of them was given.
    """
    given = [n for n in names if getattr(options, n) != getattr(Prepare, n)]
    if given:
        listed = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{listed} would change nothing: {why}; leave it out")
