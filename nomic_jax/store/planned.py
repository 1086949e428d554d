"""From the places a user names to the sources and rules that are prepared."""

import dataclasses
from collections.abc import Sequence

from nomic_jax.sources.data_yaml import read_data_yaml
from nomic_jax.sources.lines import Split
from nomic_jax.sources.open_source import open_source
from nomic_jax.sources.source import Source
from nomic_jax.store.rules import PairRule, Rule


def plan_sources(
    places: Sequence[str],
    rule: Rule,
    *,
    name: str | None = None,
    split: Split = "lines",
    honour_query_only: bool = False,
) -> list[tuple[Source, Rule]]:
    """Open sources, each with the rule by which its rows become records.

    Args:
        places: as `open_source` takes them; of pairs also data YAMLs (.yaml), which
            bring their own prefixes and columns.
        rule: of sources that bring none, and the lengths and policies of all.
        name: of the one source; those of files and data YAMLs where not given.
        split: as for `open_source`.
        honour_query_only: leave documents of sources marked `query_only` without
            prefix. Nomic Embed v1 ignored the mark.

    Raises:
        ValueError: a place holds no source, or a name is given for several.
    """
    lists = [p for p in places if p.endswith((".yaml", ".yml"))]
    if name is not None and (len(places) != 1 or lists):
        raise ValueError(
            f"the name {name!r} is for one source, and {len(places)} places are given"
            + (", of which a data YAML names its own" if lists else "")
        )
    planned: list[tuple[Source, Rule]] = []
    for place in places:
        if place not in lists or not isinstance(rule, PairRule):
            planned.append((open_source(place, name, split=split), rule))
            continue
        for entry in read_data_yaml(place):
            bare = honour_query_only and entry.query_only
            own = dataclasses.replace(
                rule,
                columns=entry.columns,
                query_prefix=entry.query_prefix,
                document_prefix="" if bare else entry.document_prefix,
            )
            planned.append((entry.source, own))
    return planned
