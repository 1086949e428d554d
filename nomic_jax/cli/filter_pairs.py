"""The command `nomic-jax filter-pairs`."""

import dataclasses
from typing import Literal

from nomic_jax.cli.options import Places, Text


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
    name: Text = None  # of a single source and its folder; None: that of its file
    k: int = 2  # nearest documents of a query, among which its own must be
    block: int = 1_000_000  # pairs searched together; the last block takes the rest
    query: str = "query"  # column of queries
    document: str = "document"  # column of documents
    negatives: str = "negatives"  # column of hard negatives, which are kept
    query_prefix: Text = None  # put before each query; None: the model's, if any
    document_prefix: Text = None  # put before each document; None: the same
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
