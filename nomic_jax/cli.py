"""The command lines: `nomic-jax`, and what `train.py` calls.

Exit status: 0 done, 2 the input was wrong, 1 a fault, 75 stopped by a signal after the
state was saved. What a command needs is imported when it runs, so `--help` is quick.
"""

import argparse
import dataclasses
import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nomic_jax.config import NOMIC_PROMPTS

if TYPE_CHECKING:
    from nomic_jax.store.rules import Rule

WRONG_INPUT = 2

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Places = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")
]
Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Dtype = Literal["float32", "bfloat16"] | None
Line = Annotated[str | None, tyro.conf.arg(metavar="STR")]
Factor = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed one text a line, of standard input or of a file, as unit vectors."""

    model: Model  # folder or hub id
    task: str  # whose prefix goes before each text: search_document, clustering, ...
    input: File = None  # .jsonl, or one text a line; None: standard input
    output: File = None  # .npy, .jsonl or .parquet; None: .npy to standard output
    column: str = "text"  # of the text in JSON Lines
    dim: Number = None  # entries of a Matryoshka vector; None: the full width
    max_length: Number = None  # tokens of the longest text; None: the model's
    rotary_scaling_factor: Factor = None  # of Dynamic NTK, for longer texts
    on_too_long: Literal["cut", "error"] = "cut"  # what texts over the maximum meet
    dtype: Dtype = None  # of matmuls; None: float32 on CPU, bfloat16 elsewhere


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a model against its fingerprint and, where it is installed, PyTorch."""

    model: Model  # folder or hub id


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
    name: Line = None  # of a single source and its store; None: that of its file
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
    workers: int = os.cpu_count() or 1  # processes
    beam: Line = None  # or on Apache Beam: --beam="--runner=FlinkRunner ..."


def main() -> None:
    """Run `nomic-jax` on the process's arguments and exit."""
    sys.exit(nomic_jax(sys.argv[1:]))


def nomic_jax(arguments: Sequence[str]) -> int:
    """Run one subcommand and return the exit status."""
    chosen = tyro.cli(Embed | Prepare | Verify, prog="nomic-jax", args=list(arguments))

    def work() -> int:
        match chosen:
            case Embed():
                return embed(chosen)
            case Prepare():
                return prepare(chosen)
            case Verify():
                return verify(chosen)

    return guarded(work)


def guarded(work: Callable[[], int]) -> int:
    """Turn a `ValueError`, wrong input, into a line on standard error and status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nomic_jax").setLevel(logging.INFO)
    try:
        return work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT


def embed(options: Embed) -> int:
    """Run `nomic-jax embed`."""
    from nomic_jax.embed_files import check_output, read_input, write_vectors

    check_output(options.output)
    texts = read_input(options.input, column=options.column)

    from nomic_jax.embedder import Embedder

    embedder = Embedder.from_pretrained(
        options.model,
        max_length=options.max_length,
        rotary_scaling_factor=options.rotary_scaling_factor,
        dtype=options.dtype,
    )
    vectors = embedder.encode(
        texts,
        task=options.task,
        dim=options.dim,
        on_too_long=options.on_too_long,
        progress=True,
    )
    write_vectors(options.output, texts, vectors)
    return 0


def prepare(options: Prepare) -> int:
    """Run `nomic-jax prepare`: a line for each store."""
    from nomic_jax.checkpoints.hub import resolve
    from nomic_jax.storage import join
    from nomic_jax.store.beam import prepare_on_beam
    from nomic_jax.store.planned import plan_sources
    from nomic_jax.store.prepare import prepare_collection, prepare_store
    from nomic_jax.tokenizer import TextTokenizer

    rule = _rule(options)
    tokenizer = TextTokenizer.from_folder(resolve(options.tokenizer, weights=False))
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
    made = prepare_collection(
        planned,
        tokenizer,
        options.out,
        make_store=make_store,
        records_per_shard=options.rows_per_shard,
    )
    for name, manifest in made.items():
        print(f"{manifest.summary()}, in {join(options.out, name)}", flush=True)
    return 0


def _rule(options: Prepare) -> "Rule":
    from nomic_jax.sources.pairs import PairColumns
    from nomic_jax.store.rules import PairRule, RowRule

    row = options.row_length
    query, document = options.query_length, options.document_length
    if row is not None and query is None and document is None:
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


def verify(options: Verify) -> int:
    """Run `nomic-jax verify`: a line for each comparison, status 1 if one fails."""
    from nomic_jax.verify import comparisons

    failed = False
    for comparison in comparisons(options.model):
        print(comparison, flush=True)
        failed |= not comparison.passed
    return int(failed)


def train(arguments: Sequence[str]) -> int:
    """Run `train.py` and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train what a config says; the same command resumes.",
        epilog="--section.field VALUE sets a field of every stage that has it, "
        "--STAGE.section.field VALUE of one stage; --config FILE --help lists them.",
        allow_abbrev=False,
        add_help="--config" not in " ".join(arguments),
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="such as configs/quickstart.py"
    )
    parser.add_argument(
        "--out", type=Path, help="the run's folder (default: runs/NAME)"
    )
    options, rest = parser.parse_known_args(arguments)

    def work() -> int:
        from nomic_jax.overrides import override
        from nomic_jax.stages import load_stages

        stages = override(load_stages(options.config), rest)
        # The config says where texts are cut: no need to say it at each encoding.
        logging.getLogger("nomic_jax.batching").setLevel(logging.ERROR)

        from nomic_jax.recipe import run

        run(stages, options.out or Path("runs") / options.config.stem)
        return 0

    return guarded(work)


if __name__ == "__main__":
    main()
