"""Pairs of sentences that follow one another, and pairs that only seem to.

In half of the rows the second sentence is one of another document, drawn again each
time (Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 2). BERT's sentences are
spans of text of up to half a row; here they are what the data says they are.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64

from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.downstream.encoding import Rows, digest_of, in_parts
from nomic_jax.downstream.examples import DocumentExample

IS_NEXT, IS_NOT = 0, 1  # the classes
_SECOND = 1  # the draw it keys; masks are keyed by seed, step and row alone


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around two texts."""

    before: Int32[np.ndarray, "n"]
    between: Int32[np.ndarray, "m"]
    after: Int32[np.ndarray, "k"]

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "Frame":
        """Look at what it makes of two texts."""
        found = tokenizer.backend.encode("a", "a")
        ids, side = np.array(found.ids, np.int32), found.sequence_ids
        first, second = ([i for i, s in enumerate(side) if s == n] for n in (0, 1))
        return cls(
            ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :]
        )

    @property
    def size(self) -> int:
        """Tokens it adds."""
        return len(self.before) + len(self.between) + len(self.after)

    def around(
        self, first: np.ndarray, second: np.ndarray, max_length: int
    ) -> tuple[Int32[np.ndarray, "S"], Int32[np.ndarray, "S"]]:
        """Join two texts, and cut the longer one until they fit.

        Returns:
            Ids, and token types: 1 is of the second text and what is behind it.
        """
        room = max_length - self.size
        if len(first) + len(second) > room:
            half = room // 2
            if len(first) <= half:
                second = second[: room - len(first)]
            elif len(second) <= half:
                first = first[: room - len(second)]
            else:  # of an odd token the longer one keeps more
                more = half + (room - 2 * half) * (len(first) > len(second))
                first, second = first[:more], second[: room - more]
        beginning = np.concatenate([self.before, first, self.between])
        end = np.concatenate([second, self.after])
        ids = np.concatenate([beginning, end])
        return ids, (np.arange(len(ids)) >= len(beginning)).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePairs:
    """Every two neighbours of every document; a batch draws which of them stay so."""

    offsets: Int64[np.ndarray, "bounds"]
    ids: Int32[np.ndarray, "tokens"]
    firsts: Int64[np.ndarray, "pairs"]  # sentences that another one follows
    documents: Int64[np.ndarray, "sentences 2"]  # where each one's begins and ends
    frame: Frame
    max_length: int
    seed: int
    choices: int = 1

    @classmethod
    def of(
        cls,
        examples: Sequence[DocumentExample],
        tokenizer: TextTokenizer,
        *,
        max_length: int,
        seed: int,
    ) -> "SentencePairs":
        """Encode the sentences of documents.

        Args:
            examples: documents.
            tokenizer: the model's.
            max_length: tokens of a row of two sentences.
            seed: of the draws.

        Raises:
            ValueError: no document has two sentences, or there is one document alone.
        """
        sizes = np.array([len(example.sentences) for example in examples], np.int64)
        if sizes.max() < 2 or len(sizes) < 2:
            raise ValueError(
                f"{examples[0].place}: {len(sizes)} documents of at most {sizes.max()} "
                "sentences; two documents are needed, and one of two sentences"
            )
        sentences = [text for example in examples for text in example.sentences]
        ids: list[np.ndarray] = []
        for some in in_parts(sentences):
            found = tokenizer.backend.encode_batch_fast(
                list(some), add_special_tokens=False
            )
            ids += [np.array(each.ids[:max_length], np.int32) for each in found]
        ends = np.cumsum(sizes)
        documents = np.repeat(np.stack([ends - sizes, ends], axis=1), sizes, axis=0)
        numbers = np.arange(len(sentences), dtype=np.int64)
        return cls(
            np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(
                np.int64
            ),
            np.concatenate(ids),
            numbers[numbers + 1 < documents[:, 1]],
            documents,
            Frame.of(tokenizer),
            max_length,
            seed,
        )

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.firsts)

    @property
    def longest(self) -> int:
        """Tokens of two of the longest sentences, or as many as a row may have."""
        sentences = 2 * int(np.diff(self.offsets).max())
        return min(self.frame.size + sentences, self.max_length)

    @property
    def digest(self) -> str:
        """BLAKE2b of the sentences, in 32 hex digits."""
        return digest_of(self.offsets, self.ids, self.documents)

    def rows(self, examples: Int64[np.ndarray, "B"], step: int = 0) -> Rows:
        """Join pairs; the draws are keyed by seed, step and place in the batch."""
        ids, types, labels = [], [], np.full(len(examples), IS_NEXT, np.int32)
        for row, first in enumerate(self.firsts[examples].tolist()):
            second = first + 1
            rng = np.random.default_rng((self.seed, step, row, _SECOND))
            if rng.random() < 0.5:
                labels[row] = IS_NOT
                begin, end = self.documents[first].tolist()
                # Counted as if the document's own sentences were not there.
                second = int(rng.integers(len(self.documents) - (end - begin)))
                second += (end - begin) * (second >= begin)
            joined = self.frame.around(
                self._sentence(first), self._sentence(second), self.max_length
            )
            ids.append(joined[0])
            types.append(joined[1])
        return Rows(ids, types, labels)

    def _sentence(self, number: int) -> np.ndarray:
        return self.ids[slice(*self.offsets[number : number + 2])]
