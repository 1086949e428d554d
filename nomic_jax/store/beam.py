"""Preparation on more than one machine, as an Apache Beam pipeline.

The transforms run the same functions as the processes of one machine, on the runner
that the pipeline's options name: Dataflow, Spark, Flink.
"""

import functools
from pathlib import Path
from typing import Any

from nomic_jax.sources.source import Source
from nomic_jax.store.finish import finish
from nomic_jax.store.job import begin, finished, make_shard
from nomic_jax.store.manifest import Manifest
from nomic_jax.store.prepare import already_there, planned
from nomic_jax.store.rules import Rule
from nomic_jax.tokenizer import TextTokenizer


def prepare_on_beam(
    source: Source,
    rule: Rule,
    tokenizer: TextTokenizer | str | Path,
    out_url: str | Path,
    *,
    records_per_shard: int | None = None,
    pipeline_options: Any = None,
) -> Manifest:
    """Tokenise a source into a store on a Beam runner, and wait for its end.

    The store has the same bytes as that of `prepare_store`, and a preparation that one
    of them left unfinished is gone on with by the other.

    Args:
        source: rows of text that every machine can read.
        rule: how they become records.
        tokenizer: or the folder that holds one.
        out_url: the store's folder, which every machine can write.
        records_per_shard: as for `prepare_store`.
        pipeline_options: Beam's `PipelineOptions`; None: of the command line's kind
            with its defaults, the direct runner.

    Raises:
        ValueError: Beam is not installed; or as `prepare_store`.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise ValueError(
            "Apache Beam is not installed: pip install 'nomic-jax[beam]'"
        ) from error

    job = planned(source, rule, tokenizer, out_url, records_per_shard=records_per_shard)
    if done := already_there(job):
        return done
    begin(job)
    entries = finished(job)
    missing = [i for i in range(job.preparation.num_shards) if i not in entries]
    if missing:
        with apache_beam.Pipeline(options=pipeline_options) as pipeline:
            shards = pipeline | "shards" >> apache_beam.Create(missing)
            # Otherwise a runner may give all to the worker that made the numbers.
            spread = shards | "spread" >> apache_beam.Reshuffle()
            task = functools.partial(make_shard, job)
            _ = spread | "tokenise" >> apache_beam.Map(task)
        entries = finished(job)
    return finish(job, entries)
