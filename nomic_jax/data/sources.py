"""A source: texts that belong together, of which each batch holds one kind only.

Nomic Embed draws every batch from a single source, so that the negatives of a batch
cannot be told apart by where they come from (arXiv:2402.01613, section 4.2).
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A query and the document that answers it, as they stand, without prefixes."""

    query: str
    document: str
    negatives: tuple[str, ...] = ()  # hard negatives: near the query, but no answer


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Pairs of one kind, and what stands before their texts.

    Symmetric tasks have the same prefix on both sides. Negatives are documents.
    """

    name: str
    pairs: Sequence[Pair]
    query_prefix: str  # put before the text as it stands: "search_query: "
    document_prefix: str

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)


def stable_hash(text: str, *, seed: int = 0) -> int:
    """Hash a text to 64 bits, the same in every process and on every machine."""
    salt = (seed % 2**64).to_bytes(8, "little")
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=salt)
    return int.from_bytes(digest.digest(), "big")


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
