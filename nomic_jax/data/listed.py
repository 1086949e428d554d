"""The sources that a config lists, and whether the stores are those.

Nomic Embed states its data as names, prefixes and numbers of pairs (arXiv:2402.01613,
Tables 3 and 7); a run on other data is another run, and nothing else would tell.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from nomic_jax.fields import nearest
from nomic_jax.store.store import Store

AnyStore = TypeVar("AnyStore", bound=Store)


@dataclasses.dataclass(frozen=True)
class PairSourceConfig:
    """A source of pairs, as a config lists it."""

    name: str  # of its store
    query_prefix: str  # that its store was prepared with: "search_query: "
    document_prefix: str  # of its negatives too
    pairs: int  # that are used: the first ones of its store, which may hold more

    def __post_init__(self) -> None:
        """Refuse a source of nothing.

        Raises:
            ValueError: with the number.
        """
        if self.pairs < 1:
            raise ValueError(f"{self.name}: pairs={self.pairs} must be at least 1")


def check_names(sources: Sequence[PairSourceConfig]) -> None:
    """Refuse a list that names a source twice.

    Raises:
        ValueError: with the names.
    """
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sources are listed twice: {', '.join(twice)}")


def listed_stores(
    sources: Sequence[PairSourceConfig], stores: Mapping[str, AnyStore]
) -> dict[str, AnyStore]:
    """Return the stores in the order in which a config lists their sources.

    Args:
        sources: of the config; none: whatever the stores hold is taken, in their order.
        stores: of pairs, by source.

    Raises:
        ValueError: a listed store is missing, one that is there is not listed, or one
            has other prefixes or too few pairs; every problem is named.
    """
    if not sources:
        return dict(stores)
    listed = [source.name for source in sources]
    problems = [
        f"{name!r} has a store and is not listed: {nearest(name, listed)}"
        for name in stores
        if name not in listed
    ]
    for source in sources:
        if source.name in stores:
            problems += _differences(source, stores[source.name])
        else:
            problems.append(f"{source.name!r} is listed and has no store")
    if problems:
        raise ValueError(
            f"the stores are not the {len(sources)} sources that the config lists: "
            f"{'; '.join(problems)}; prepare them as the config says, or list in it "
            "what there is"
        )
    return {name: stores[name] for name in listed}


def pairs_taken(
    sources: Sequence[PairSourceConfig], stores: Mapping[str, Store]
) -> dict[str, int]:
    """Return how many records of each store are used, the first ones.

    The published numbers are whole batches of each file of a source, so the files hold
    some thousands more.
    """
    if sources:
        return {source.name: source.pairs for source in sources}
    return {name: len(store) for name, store in stores.items()}


def _differences(source: PairSourceConfig, store: Store) -> list[str]:
    """Say in what a store is not the source that is listed."""
    rule = store.manifest.rule
    found = [
        f"{source.name!r} has {side}={rule.get(side)!r}, {getattr(source, side)!r} is "
        "listed"
        for side in ("query_prefix", "document_prefix")
        if rule.get(side) != getattr(source, side)
    ]
    if len(store) < source.pairs:
        found.append(
            f"{source.name!r} has {len(store):,} pairs, {source.pairs:,} are listed"
        )
    return found
