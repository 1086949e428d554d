"""From the places a user names to the sources and rules that are prepared."""

import dataclasses
import logging
from collections.abc import Sequence

from nomic_jax.sources.data_yaml import read_data_yaml
from nomic_jax.sources.lines import Split
from nomic_jax.sources.open_source import is_data_yaml, open_source
from nomic_jax.sources.parquet import ParquetRows
from nomic_jax.sources.source import Source
from nomic_jax.store.rules import PairRule, Rule

_logger = logging.getLogger(__name__)


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
            Negatives are stored of those entries of a data YAML that have any.
        honour_query_only: leave documents of sources marked `query_only` without
            prefix. Nomic Embed v1 ignored the mark.

    Raises:
        ValueError: a place holds no source, a name is given for several, or negatives
            are asked for and no entry of a data YAML has any.
    """
    lists = [place for place in places if is_data_yaml(place)]
    if name is not None and (len(places) != 1 or lists):
        raise ValueError(
            f"the name {name!r} is for one source, and {len(places)} places are given"
            + (", of which a data YAML names its own" if lists else "")
        )
    planned: list[tuple[Source, Rule]] = []
    for place in places:
        if place not in lists or not isinstance(rule, PairRule):
            source = open_source(place, name, split=split)
            if isinstance(source, ParquetRows):
                source = source.restricted(rule.needed_columns)
            planned.append((source, rule))
            continue
        for entry in read_data_yaml(place):
            has_negatives = entry.columns.negatives is not None
            if has_negatives and not rule.num_negatives:
                _logger.warning(
                    "%s: its negatives (column %r) are not stored; --num-negatives "
                    "says how many to store with each pair",
                    entry.source.name,
                    entry.columns.negatives,
                )
            bare = honour_query_only and entry.query_only
            own = dataclasses.replace(
                rule,
                columns=entry.columns,
                num_negatives=rule.num_negatives if has_negatives else 0,
                query_prefix=entry.query_prefix,
                document_prefix="" if bare else entry.document_prefix,
            )
            planned.append((entry.source, own))
    rules = [own for _, own in planned if isinstance(own, PairRule)]
    if rules and isinstance(rule, PairRule) and rule.num_negatives:
        if not any(own.num_negatives for own in rules):
            raise ValueError(
                f"num_negatives={rule.num_negatives} and no entry of "
                f"{', '.join(lists)} has a column of negatives; leave it out"
            )
    return planned
