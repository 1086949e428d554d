"""Preparation on more than one machine, as an Apache Beam pipeline.

The transforms run the same functions as the processes of one machine, on the runner
that the pipeline's options name: Dataflow, Spark, Flink.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from nomic_jax import storage
from nomic_jax.data.sources.source import Source
from nomic_jax.data.store.manifest import Manifest
from nomic_jax.data.store.prepare import (
    Job,
    already_there,
    begin,
    entry_name,
    finish,
    finished,
    make_shard,
    planned,
)
from nomic_jax.data.store.records import Rule
from nomic_jax.data.store.workers import claimed
from nomic_jax.data.tokenizer import TextTokenizer

NOTE = ".error"  # ends the name of a note of what was wrong with a range


def prepare_on_beam(
    source: Source,
    rule: Rule,
    tokenizer: TextTokenizer | str | Path,
    out_url: str | Path,
    *,
    records_per_shard: int | None = None,
    pipeline_options: Sequence[str] = (),
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
        pipeline_options: as on the command line of a Beam program:
            `["--runner=FlinkRunner", ...]`; none are the direct runner.

    Raises:
        ValueError: Beam is not installed; or as `prepare_store`.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            "Apache Beam is not installed: pip install 'nomic-jax[beam]'"
        ) from error

    job = planned(source, rule, tokenizer, out_url, records_per_shard=records_per_shard)
    if done := already_there(job):
        return done
    with claimed(job.folder):
        if done := already_there(job):  # since it was looked for
            return done
        begin(job)
        entries = finished(job)
        missing = [i for i in range(job.preparation.num_shards) if i not in entries]
        if missing:
            flags = PipelineOptions(list(pipeline_options))
            problems(job)  # of an earlier try
            try:
                with apache_beam.Pipeline(options=flags) as pipeline:
                    shards = pipeline | "shards" >> apache_beam.Create(missing)
                    # Or a runner may give all to the worker that made the numbers.
                    spread = shards | "spread" >> apache_beam.Reshuffle()
                    task = functools.partial(attempt, job)
                    _ = spread | "tokenise" >> apache_beam.Map(task)
            except Exception as error:
                if found := problems(job):
                    raise ValueError(found[0]) from error
                raise
            entries = finished(job)
        return finish(job, entries)


def attempt(job: Job, index: int) -> None:
    """Make a shard; of wrong input leave a note, as runners bury what was raised."""
    try:
        make_shard(job, index)
    except ValueError as error:
        note = storage.join(job.folder, entry_name(job, index) + NOTE)
        storage.write_json(note, str(error))
        raise


def problems(job: Job) -> list[str]:
    """Take the notes that failed attempts left."""
    places = [
        storage.join(job.folder, name)
        for name in sorted(storage.sizes(job.folder))
        if name.endswith(NOTE)
    ]
    found = [storage.read_json(place) for place in places]
    for place in places:
        storage.remove(place)
    return found
