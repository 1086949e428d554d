"""Contrastive batches: the pairs of a step, tokenised and padded.

A source is tokenised once, when a stage begins; a batch then only picks rows. Hard
negatives are drawn anew each time a query comes up, as the paper found best
(arXiv:2402.01613, section 4.3).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nomic_jax.batch import PairBatch, Tokens
from nomic_jax.data.sources import PairSource
from nomic_jax.tokenizer import TextTokenizer, bucket, pad


@dataclasses.dataclass(frozen=True)
class TokenizedPairs:
    """A source as token ids, its prefixes included."""

    name: str
    queries: Sequence[np.ndarray]
    documents: Sequence[np.ndarray]
    negatives: Sequence[Sequence[np.ndarray]]  # of each query, all of them
    query_length: int  # tokens of a row, at most
    document_length: int

    @classmethod
    def of(
        cls,
        source: PairSource,
        tokenizer: TextTokenizer,
        *,
        query_length: int,
        document_length: int,
        num_negatives: int,
    ) -> "TokenizedPairs":
        """Tokenise a source, cutting texts that are too long.

        Raises:
            ValueError: a pair has fewer hard negatives than a batch takes of it.
        """
        for number, pair in enumerate(source.pairs):
            if len(pair.negatives) < num_negatives:
                raise ValueError(
                    f"source {source.name!r}, pair {number} "
                    f"(query {pair.query[:40]!r}) has {len(pair.negatives)} hard "
                    f"negatives; a batch takes {num_negatives} of each: mine more, or "
                    "set num_negatives lower"
                )

        def documents(texts: Sequence[str]) -> list[np.ndarray]:
            prefixed = [source.document_prefix + text for text in texts]
            return tokenizer.encode(prefixed, max_length=document_length).ids

        queries = [source.query_prefix + pair.query for pair in source.pairs]
        kept = [pair.negatives if num_negatives else () for pair in source.pairs]
        flat = iter(documents([text for texts in kept for text in texts]))
        return cls(
            source.name,
            tokenizer.encode(queries, max_length=query_length).ids,
            documents([pair.document for pair in source.pairs]),
            [[next(flat) for _ in texts] for texts in kept],
            query_length,
            document_length,
        )

    def batch(
        self,
        records: np.ndarray,
        *,
        num_negatives: int,
        seed: int,
        step: int,
        pad_id: int,
    ) -> PairBatch:
        """Put the records of a step together, each text in a row of its own.

        Which negatives a query gets is keyed by (seed, step, row in the global batch).
        """
        documents = []
        for row, record in enumerate(records):
            documents.append(self.documents[record])
            if num_negatives:
                rng = np.random.default_rng((seed, step, row))
                pool = self.negatives[record]
                chosen = rng.choice(len(pool), size=num_negatives, replace=False)
                documents += [pool[i] for i in chosen]
        queries = [self.queries[record] for record in records]
        return PairBatch(
            _padded(queries, self.query_length, pad_id),
            _padded(documents, self.document_length, pad_id),
        )


def _padded(texts: Sequence[np.ndarray], most: int, pad_id: int) -> Tokens:
    """Pad to a bucket, but not beyond the length that texts are cut to."""
    longest = max(len(text) for text in texts)
    return pad(texts, length=min(bucket(longest), most), pad_id=pad_id)
