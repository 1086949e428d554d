"""The command `nomic-jax mine-negatives`."""

import dataclasses
from typing import Annotated, Literal

import tyro

from nomic_jax.cli.options import Fraction, Text

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]


@dataclasses.dataclass(frozen=True)
class MineNegatives:
    """Give each pair hard negatives: near its query, and no answer to it.

    SOURCE is a file of pairs, a pattern of files or a folder of shards. `nomic-jax
    prepare` takes the file that is written, with --num-negatives. The same command
    again goes on where it was stopped.
    """

    source: Source  # pairs; those with one query are its answers
    model: str  # folder or hub id of what embeds them; the paper's is thenlper/gte-base
    out: str  # .jsonl or .jsonl.gz: query, document, negatives
    corpus: Text = None  # a source of further documents, which answer no query
    corpus_column: str = "text"  # of the documents in it
    count: int = 20  # negatives of each query; training draws 7 of 20 at random
    pool: int = 20  # nearest allowed documents that they are drawn from
    margin: Fraction = 0.95  # of the worst answer's score, which no negative may exceed
    margin_kind: Literal["ratio", "absolute"] = "ratio"  # absolute: what it must lack
    # what queries with fewer below the margin meet: random documents, or pairs go
    too_few: Literal["fill", "drop"] = "fill"
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
    seed: int = 0  # of the draw
    query: str = "query"  # column of queries
    document: str = "document"  # column of documents
    query_prefix: Text = None  # put before each query; None: the model's, if any
    document_prefix: Text = None  # put before each document; None: the same
    max_length: int = 512  # tokens; longer texts are cut; a model may take fewer
    coordinator: str = ""  # of several hosts: ADDRESS:PORT of the first, a free port
    hosts: int = 0  # their number; 0: Cloud TPU, GKE, SLURM or Open MPI says it
    host: int = -1  # this host's number, from 0


def mine_negatives(options: MineNegatives) -> int:
    """Run `nomic-jax mine-negatives`.

    Raises:
        ValueError: the input is wrong, or a file cannot be read or written.
    """
    from nomic_jax.data.sources.files import reason_of

    try:
        return _mine_negatives(options)
    except OSError as error:
        place = error.filename or options.out
        raise ValueError(f"{place}: {reason_of(error)}") from error


def _mine_negatives(options: MineNegatives) -> int:
    from nomic_jax.curation.mining import Mining, check_file, mine_file
    from nomic_jax.curation.pairs import search_prompts, with_own_prompts
    from nomic_jax.data.sources.pairs import PairColumns
    from nomic_jax.data.sources.registry import open_source
    from nomic_jax.data.sources.source import Place, text_of
    from nomic_jax.distributed import hosts
    from nomic_jax.inference.embedder import Embedder

    mining = Mining(
        count=options.count,
        pool=options.pool,
        margin=options.margin,
        margin_kind=options.margin_kind,
        too_few=options.too_few,
        blank=options.blank,
        seed=options.seed,
    )
    if options.corpus is None and options.corpus_column != MineNegatives.corpus_column:
        raise ValueError("--corpus-column would change nothing: there is no --corpus")
    check_file(options.out)
    source = open_source(options.source)
    corpus: list[str] = []
    if options.corpus is not None:
        texts = open_source(options.corpus)
        corpus = [
            text_of(row, options.corpus_column, Place(texts, number))
            for number, row in enumerate(texts.rows(0, len(texts)))
        ]
    hosts.start(options.coordinator, options.hosts, options.host)
    embedder = hosts.run_on_all_hosts(
        options.model, lambda: Embedder.from_pretrained(options.model)
    )
    own_query, own_document = search_prompts(embedder.config)
    query, document = options.query_prefix, options.document_prefix
    counts = mine_file(
        source,
        PairColumns(options.query, options.document, None),
        with_own_prompts(
            embedder,
            own_query if query is None else query,
            own_document if document is None else document,
            max_length=options.max_length,
        ),
        mining,
        options.out,
        corpus=corpus,
        progress=True,
    )
    if hosts.is_first():
        print(
            f"{source.name}: {counts['kept']:,} of {counts['pairs']:,} pairs, each "
            f"with {mining.count} negatives, in {options.out}",
            flush=True,
        )
    return 0
