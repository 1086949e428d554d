"""The commands `nomic-jax filter-pairs` and `nomic-jax mine-negatives`."""

import dataclasses
from typing import Annotated, Literal

import tyro

Places = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="SOURCE ...", help_behavior_hint="(required)"),
]
FilterLine = Annotated[str | None, tyro.conf.arg(metavar="STR")]


@dataclasses.dataclass(frozen=True)
class FilterPairs:
    """Keep the pairs whose document a model finds by its query (arXiv:2402.01613, 3.2).

    A source is what `nomic-jax prepare` takes: files of pairs, patterns, folders of
    shards, data YAMLs; what stays is written to OUT/SOURCE, which prepare takes in its
    turn. The same command again goes on where it was stopped.
    """

    sources: Places  # each has its own blocks
    model: str  # folder or hub id of what judges; the paper's is thenlper/gte-base
    out: str  # folder or URL
    name: FilterLine = None  # of a single source and its folder; None: that of its file
    k: int = 2  # nearest documents of a query, among which its own must be
    block: int = 1_000_000  # pairs searched together; the last block takes the rest
    query: str = "query"  # column of queries
    document: str = "document"  # column of documents
    negatives: str = "negatives"  # column of hard negatives, which are kept
    query_prefix: FilterLine = None  # put before each query; None: the model's, if any
    document_prefix: FilterLine = None  # put before each document; None: the same
    max_length: int = 512  # tokens; longer texts are cut; a model may take fewer
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
    coordinator: str = ""  # of several hosts: ADDRESS:PORT of the first, a free port
    hosts: int = 0  # their number; 0: Cloud TPU, GKE, SLURM or Open MPI says it
    host: int = -1  # this host's number, from 0


def filter_pairs(options: FilterPairs) -> int:
    """Run `nomic-jax filter-pairs`: a line for each source.

    Raises:
        ValueError: the input is wrong, or a file cannot be read or written.
    """
    from nomic_jax.data.sources.files import reason_of

    try:
        return _filter_pairs(options)
    except OSError as error:
        place = error.filename or options.out
        raise ValueError(f"{place}: {reason_of(error)}") from error


def _filter_pairs(options: FilterPairs) -> int:
    from nomic_jax.curation.filter import REPORT, Candidates, Filtering, filter_sources
    from nomic_jax.data.sources.pairs import PairColumns
    from nomic_jax.data.sources.source import check_distinct
    from nomic_jax.data.store.records import PairRule
    from nomic_jax.data.store.stage import plan_sources
    from nomic_jax.distributed import hosts
    from nomic_jax.inference.embedder import Embedder
    from nomic_jax.storage import (
        check_out,
        exists,
        folders,
        join,
        read_json,
        write_json,
    )

    filtering = Filtering(
        model=options.model,
        k=options.k,
        block=options.block,
        query_prefix=options.query_prefix,
        document_prefix=options.document_prefix,
        max_length=options.max_length,
        blank=options.blank,
    )
    check_out(options.out)
    # The lengths of the rule are of token stores, of which none is made here.
    rule = PairRule(
        query_prefix="",
        document_prefix="",
        query_length=3,
        document_length=3,
        columns=PairColumns(options.query, options.document, options.negatives),
    )
    planned = plan_sources(options.sources, rule, name=options.name)
    candidates = [
        Candidates(source, own.columns)
        for source, own in planned
        if isinstance(own, PairRule)
    ]
    names = [each.source.name for each in candidates]
    check_distinct(names)
    hosts.start(options.coordinator, options.hosts, options.host)
    embedder = hosts.run_on_all_hosts(
        options.model, lambda: Embedder.from_pretrained(options.model)
    )
    reports = filter_sources(
        candidates,
        embedder,
        filtering,
        [join(options.out, name) for name in names],
        progress=True,
    )
    if not hosts.is_first():
        return 0
    for name, report in zip(names, reports, strict=True):
        dropped = ", ".join(f"{n:,} by {why}" for why, n in report["dropped"].items())
        print(
            f"{name}: kept {report['kept']:,} of {report['pairs']:,} pairs, dropped "
            f"{dropped}, in {join(options.out, name)}",
            flush=True,
        )
    # Of all that were filtered into the folder, also by commands before this one.
    places = {name: join(options.out, name, REPORT) for name in folders(options.out)}
    found = {name: read_json(at) for name, at in places.items() if exists(at)}
    write_json(join(options.out, REPORT), found)
    return 0


Place = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
MiningLine = Annotated[str | None, tyro.conf.arg(metavar="STR")]
Share = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclasses.dataclass(frozen=True)
class MineNegatives:
    """Give each pair hard negatives: near its query, and no answer to it.

    SOURCE is a file of pairs, a pattern of files or a folder of shards. `nomic-jax
    prepare` takes the file that is written, with --num-negatives. The same command
    again goes on where it was stopped.
    """

    source: Place  # pairs; those with one query are its answers
    model: str  # folder or hub id of what embeds them; the paper's is thenlper/gte-base
    out: str  # .jsonl or .jsonl.gz: query, document, negatives
    corpus: MiningLine = None  # a source of further documents, which answer no query
    corpus_column: str = "text"  # of the documents in it
    count: int = 20  # negatives of each query; training draws 7 of 20 at random
    pool: int = 20  # nearest allowed documents that they are drawn from
    margin: Share = 0.95  # of the worst answer's score, which no negative may exceed
    margin_kind: Literal["ratio", "absolute"] = "ratio"  # absolute: what it must lack
    # what queries with fewer below the margin meet: random documents, or pairs go
    too_few: Literal["fill", "drop"] = "fill"
    blank: Literal["error", "drop"] = "error"  # what blank texts and nulls meet
    seed: int = 0  # of the draw
    query: str = "query"  # column of queries
    document: str = "document"  # column of documents
    query_prefix: MiningLine = None  # put before each query; None: the model's, if any
    document_prefix: MiningLine = None  # put before each document; None: the same
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
