"""From a place as it is typed to a source: endings and schemes tell the kind."""

import re
from pathlib import Path

from nomic_jax.data.sources.contrastors import ShardedPairs
from nomic_jax.data.sources.files import has_pattern, matching, whole_place
from nomic_jax.data.sources.jsonl import JsonLines, TextLines
from nomic_jax.data.sources.lines import Split
from nomic_jax.data.sources.source import Source, source_name
from nomic_jax.data.sources.tables import DatasetsRows, ParquetRows, TfdsRows
from nomic_jax.storage import is_remote, join, local_path

KINDS = (
    "*.jsonl, *.jsonl.gz, *.txt, *.txt.gz, *.parquet, a folder of shard-*.jsonl.gz, "
    "tfds:NAME/CONFIG:SPLIT, hf:FOLDER; of pairs also *.yaml"
)


def is_data_yaml(place: str) -> bool:
    """Say whether a place is a data YAML, which names several sources."""
    return re.search(r"\.ya?ml$", place, re.IGNORECASE) is not None


def open_source(
    place: str | Path, name: str | None = None, *, split: Split = "lines"
) -> Source:
    """Open whatever is at a place.

    Args:
        place: a file, a pattern of files (`dump/*.jsonl.gz`, one source), a folder of
            shards, local or at an fsspec URL; or `tfds:glue/mrpc:train`, or `hf:` and
            a folder that `datasets` saved.
        name: of the source; made of the place where not given.
        split: a document of a .txt file is a line, or the lines up to a blank one.

    Raises:
        ValueError: the kind is unknown, or what is there cannot be read.
    """
    place = str(place)
    # tfds:... and hf:... are no URLs: what follows is a name, or a folder.
    if match := re.fullmatch(r"tfds:(?!//)(.+)", place):
        return TfdsRows.open(match[1], name)
    if match := re.fullmatch(r"hf:(?!//)(.+)", place):
        return DatasetsRows.open(match[1], name)
    if re.search(r"\.jsonl(\.gz)?$", place):
        return JsonLines.open(place, name)
    if re.search(r"\.txt(\.gz)?$", place):
        return TextLines.open(place, name, split=split)
    if place.endswith(".parquet"):
        return ParquetRows.open(place, name)
    known = f"known: {KINDS}"
    if is_data_yaml(place):
        raise ValueError(
            f"{place} is a data YAML, which names several sources; name one of them"
        )
    if has_pattern(place) or re.search(r"\.\w+$", source_name(place)):
        raise ValueError(f"{place} has an unknown ending; {known}")
    if not is_remote(place) and not local_path(place).is_dir():
        raise ValueError(f"{place} is not a file or folder; {known}")
    shards = matching(join(whole_place(place), "shard-*.jsonl.gz"))
    return ShardedPairs.open(shards, name or source_name(place))
