"""The end of a preparation: the manifest, written when every shard is there."""

import collections
import dataclasses
from collections.abc import Mapping

from nomic_jax import storage
from nomic_jax.store.job import Entry, Job, entry_name, explained
from nomic_jax.store.manifest import (
    MANIFEST,
    PREPARATION,
    Manifest,
    Preparation,
    write_manifest,
)


def finish(job: Job, entries: Mapping[int, Entry]) -> Manifest:
    """Write the manifest of a job whose shards are all made, and drop the entries.

    Raises:
        ValueError: a shard is not there, there is no record, or all are the same; the
            last two leave nothing behind.
    """
    wanted = job.preparation.num_shards
    if missing := wanted - len(entries):
        raise ValueError(
            f"{job.folder}: {missing} of {wanted} shards were made where this process "
            "does not see them: give --out as a URL that all machines reach"
        )
    shards = tuple(entries[i].shard for i in range(wanted))
    present = storage.sizes(job.folder)
    for shard in shards:
        if present.get(shard.file) != shard.bytes:
            raise ValueError(
                f"{storage.join(job.folder, shard.file)} was written, but is not "
                "there: a place that one process alone sees needs workers=1"
            )
    counts = collections.Counter[str]()
    for entry in entries.values():
        counts.update(entry.counts)
    manifest = Manifest(
        **{
            field.name: getattr(job.preparation, field.name)
            for field in dataclasses.fields(Preparation)
        },
        records=sum(shard.records for shard in shards),
        counts=dict(sorted(counts.items())),
        shards=shards,
    )
    problem = _problem(manifest)
    if problem:
        for shard in shards:
            storage.remove(storage.join(job.folder, shard.file))
            storage.remove(storage.join(job.folder, shard.lengths_file))
        forget(job)
        raise ValueError(problem)
    try:
        write_manifest(job.folder, manifest)
    except OSError as error:
        raise explained(error, job, MANIFEST, counts) from error
    forget(job)
    return manifest


def forget(job: Job) -> None:
    """Delete the entries and the note of a preparation that has ended."""
    present = storage.sizes(job.folder)
    names = [entry_name(job, index) for index in range(job.preparation.num_shards)]
    for name in (*names, PREPARATION):
        if name in present:
            storage.remove(storage.join(job.folder, name))


def _problem(manifest: Manifest) -> str | None:
    name, counts = manifest.name, manifest.counts
    blank = counts.get("dropped_blank", 0)
    if manifest.records == 0 and blank == counts["input_rows"]:
        return f"source {name!r}: all {blank} texts are blank; is it the right column?"
    if manifest.records == 0 and manifest.kind == "pairs":
        return (
            f"source {name!r}: all {counts['dropped_records']} pairs have fewer than "
            f"{manifest.rule['num_negatives']} negatives in column "
            f"{manifest.rule['columns']['negatives']!r} and were dropped; lower "
            "num_negatives, or name another column"
        )
    if manifest.records == 0:
        return (
            f"source {name!r}: {counts['lost_tokens']} tokens in "
            f"{len(manifest.shards)} ranges fill no row of "
            f"{manifest.rule['row_length']}; give more text, shorter rows or longer "
            "ranges"
        )
    filled = [shard for shard in manifest.shards if shard.records]
    same = all(shard.distinct == 1 for shard in filled)
    if manifest.records > 1 and same and len({shard.first for shard in filled}) == 1:
        part = "document" if manifest.kind == "pairs" else "row"
        return (
            f"source {name!r}: all {manifest.records} records have one and the same "
            f"{part}, so there is nothing to tell apart; leave it out"
        )
    return None
