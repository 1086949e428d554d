"""Pairs of texts: the columns they stand in, a source of them in memory, a split."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

from nomic_jax.data.sources.source import (
    Place,
    Row,
    check_text,
    kind_of,
    stable_hash,
    text_of,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A query and the document that answers it, as they stand, without prefixes."""

    query: str
    document: str
    negatives: tuple[str, ...] = ()  # hard negatives: near the query, but no answer


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Pairs of one kind in memory, and what is before their texts.

    Symmetric tasks have the same prefix on both sides. Negatives are documents.
    """

    name: str
    pairs: Sequence[Pair]
    query_prefix: str  # put before the text as it stands: "search_query: "
    document_prefix: str

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    @property
    def fingerprint(self) -> str:
        """Digest of the pairs."""
        return fingerprint([self])

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield pairs as a file holds them."""
        for pair in self.pairs[start:stop]:
            yield {
                "query": pair.query,
                "document": pair.document,
                "negatives": list(pair.negatives),
            }

    def place(self, row: int) -> str:
        """Name a pair, for an error to begin with."""
        return f"source {self.name!r}, pair {row}"


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """Which columns of a row make a pair."""

    query: str = "query"
    document: str = "document"
    negatives: str | None = "negatives"  # a text or a list of texts; rows may lack it

    def pair(self, row: Row, place: str | Place, *, allow_blank: bool = False) -> Pair:
        """Take a pair out of a row; with `allow_blank` null is the empty text.

        Raises:
            ValueError: a column is missing or holds no text; begins with `place`.
        """
        further = None if self.negatives is None else row.get(self.negatives)
        if further is None:
            further = []
        elif isinstance(further, str):
            further = [further]
        if not isinstance(further, list | tuple):
            raise ValueError(
                f"{place}: column {self.negatives!r} is {kind_of(further)}; "
                "a list of texts is needed"
            )
        return Pair(
            text_of(row, self.query, place, allow_blank=allow_blank),
            text_of(row, self.document, place, allow_blank=allow_blank),
            tuple(
                check_text(
                    item, f"{self.negatives}[{i}]", place, allow_blank=allow_blank
                )
                for i, item in enumerate(further)
            ),
        )


def fingerprint(sources: Iterable[PairSource], texts: Iterable[str] = ()) -> str:
    """Digest names, prefixes, pairs in their order, and texts, into 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)

    def add(*parts: str) -> None:
        # The lengths stand first, so that no two lists of parts run together.
        encoded = [part.encode() for part in parts]
        digest.update(repr([len(part) for part in encoded]).encode())
        digest.update(b"".join(encoded))

    for source in sources:
        add(source.name, source.query_prefix, source.document_prefix)
        for pair in source.pairs:
            add(pair.query, pair.document, *pair.negatives)
    add(*texts)
    return digest.hexdigest()


def split_held_out(
    source: PairSource,
    *,
    share: float,
    seed: int,
    at_most: int | None = None,
    at_least: int = 1,
) -> tuple[PairSource, PairSource]:
    """Split off pairs for evaluation, whole documents at a time.

    Documents are ranked by a hash of their text and the seed, and taken until the share
    is reached. A document that answers several queries stays on one side.

    Args:
        source: pairs, in any order: the split does not depend on it.
        share: of the pairs, for evaluation.
        seed: of the choice.
        at_most: stop at this many pairs for evaluation, however many there are.
        at_least: pairs that each side needs.

    Returns:
        The training and the held-out source, pairs in their old order. The held-out one
        exceeds its number only by the last document's further queries.

    Raises:
        ValueError: the share is outside (0, 1), or a side is left with too few pairs.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share is {share}; it must be in (0, 1)")
    wanted = round(share * len(source))
    if at_most is not None:
        wanted = min(wanted, at_most)
    counts: dict[str, int] = {}
    for pair in source.pairs:
        counts[pair.document] = counts.get(pair.document, 0) + 1
    chosen, number = set(), 0
    for document in sorted(counts, key=lambda text: stable_hash(text, seed=seed)):
        if number >= wanted:
            break
        chosen.add(document)
        number += counts[document]
    if min(number, len(source) - number) < at_least:
        raise ValueError(
            f"{source.name}: {len(source)} pairs over {len(counts)} documents split "
            f"into {len(source) - number} to train on and {number} held out; each side "
            f"needs at least {at_least}: give more pairs or another held-out share"
        )
    train, held_out = (
        dataclasses.replace(
            source,
            pairs=[p for p in source.pairs if (p.document in chosen) == is_held_out],
        )
        for is_held_out in (False, True)
    )
    return train, held_out
