"""From the places a user names to the sources and rules that `prepare` takes."""

import dataclasses
from collections.abc import Sequence

from nomic_jax.sources.open_source import open_source
from nomic_jax.sources.data_yaml import read_data_yaml
from nomic_jax.sources.source import Source
from nomic_jax.store.rules import PairRule, RowRule


def plan_pairs(
    places: Sequence[str], rule: PairRule, *, honour_query_only: bool = False
) -> list[tuple[Source, PairRule]]:
    """Open sources of pairs, each with the rule its pairs are tokenised by.

    Args:
        places: files, folders, URLs or data lists (.yaml), which bring their own
            prefixes and columns.
        rule: of sources that bring none, and the lengths of all.
        honour_query_only: leave documents of sources marked `query_only` without
            prefix. The first published models ignored the mark.

    Raises:
        ValueError: a place holds no source, or two sources share a name.
    """
    planned: list[tuple[Source, PairRule]] = []
    for place in places:
        if not place.endswith((".yaml", ".yml")):
            planned.append((open_source(place), rule))
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


def plan_rows(places: Sequence[str], rule: RowRule) -> list[tuple[Source, RowRule]]:
    """Open sources of documents for the masked language model.

    Raises:
        ValueError: a place holds no source.
    """
    return [(open_source(place), rule) for place in places]
