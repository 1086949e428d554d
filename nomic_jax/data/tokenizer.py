"""Text to `Tokens`: load or train a tokenizer, prefix, encode, pad to few lengths.

Rows are padded to the lengths of `BUCKETS` only, so that few programs are compiled.
"""

import bisect
import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nomic_jax.batch import PADDING, Tokens

if TYPE_CHECKING:
    import tokenizers


# Neighbours are at most a factor 1.5 apart: at most a third of a row is padding.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
BUCKETS += (2048, 3072, 4096, 6144, 8192, 12288, 16384)
ALPHABET = 1000  # characters a trained vocabulary spells with; the rest is [UNK]
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of BERT, ids 0 to 4
# What a special token is for, and its names in BERT's and in XLM-R's tokenizers.
ROLES: Mapping[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def bucket(length: int) -> int:
    """Return the smallest bucket that holds `length` tokens.

    Raises:
        ValueError: the length exceeds the largest bucket.
    """
    index = bisect.bisect_left(BUCKETS, length)
    if index == len(BUCKETS):
        raise ValueError(
            f"{length} tokens exceed the longest row, {BUCKETS[-1]} tokens"
        )
    return BUCKETS[index]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of texts, in input order, and which texts were cut to fit."""

    ids: list[np.ndarray]  # each int32 [length]
    cut: list[int]  # indices of the texts that were too long


class TextTokenizer:
    """A fast tokenizer that frames each text as `[CLS] ... [SEP]`."""

    def __init__(self, backend: "tokenizers.Tokenizer"):
        """Wrap a tokenizer; its own truncation and padding are switched off."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTokenizer":
        """Read `tokenizer.json`, or let transformers build one from older files.

        Raises:
            ValueError: the folder holds no tokenizer, or one that cannot be read.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            text = (folder / "tokenizer.json").read_text()
            return cls.from_json(text, place=str(folder / "tokenizer.json"))
        if not (folder / "vocab.txt").is_file():
            raise ValueError(
                f"{folder} holds no tokenizer: tokenizer.json or vocab.txt is needed"
            )
        import transformers

        slow = transformers.AutoTokenizer.from_pretrained(folder)
        return cls(slow.backend_tokenizer)

    @classmethod
    def from_json(cls, text: str, *, place: str = "the text") -> "TextTokenizer":
        """Build one from the content of a `tokenizer.json`, which is in a place.

        Raises:
            ValueError: the content is not a tokenizer.
        """
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{place} holds no tokenizer: {error}") from error

    @classmethod
    def train(cls, texts: Sequence[str], *, vocab_size: int) -> "TextTokenizer":
        """Train a lower-casing WordPiece vocabulary, as bert-base-uncased's.

        The result depends on the texts alone. The trainer gives ids to the alphabet in
        the order of a hash table, and ties between merges follow the ids; so the
        alphabet, most frequent character first, is given to it as if it were special.

        Args:
            texts: gone through twice.
            vocab_size: tokens at most, special ones included.
        """
        from tokenizers.trainers import WordPieceTrainer

        backend = _wordpiece({token: i for i, token in enumerate(SPECIAL_TOKENS)})
        characters = collections.Counter[str]()
        for text in texts:
            characters.update(backend.normalizer.normalize_str(text))
        ranked = sorted(characters, key=lambda c: (-characters[c], c))
        room = max(vocab_size - len(SPECIAL_TOKENS), 0) // 2  # each character is two
        alphabet = [c for c in ranked if not c.isspace()][: min(ALPHABET, room)]
        continued = ["##" + character for character in alphabet]
        backend.train_from_iterator(
            iter(texts),
            WordPieceTrainer(
                vocab_size=vocab_size,
                min_frequency=2,
                special_tokens=[*SPECIAL_TOKENS, *alphabet, *continued],
                limit_alphabet=1,
                show_progress=False,
            ),
        )
        vocabulary = backend.get_vocab(with_added_tokens=True)
        backend = _wordpiece(dict(sorted(vocabulary.items(), key=lambda item: item[1])))
        return cls(backend)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the `tokenizer_config.json` transformers reads."""
        import json

        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{
                f"{role}_token": token
                for role, names in ROLES.items()
                for token in names
                if self.backend.token_to_id(token) is not None
            },
        }
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(config, indent=2) + "\n")

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def digest(self) -> str:
        """BLAKE2b of all it does, in 32 hex digits; saving and loading keep it."""
        text = self.backend.to_str()
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def role_id(self, role: str) -> int:
        """Return the id of the token that has a role of `ROLES`, as "pad" or "mask".

        Raises:
            ValueError: the vocabulary has no such token.
        """
        found = (self.backend.token_to_id(name) for name in ROLES[role])
        for number in found:
            if number is not None:
                return number
        raise ValueError(
            f"the tokenizer has no {role} token: {' or '.join(ROLES[role])} is needed"
        )

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens, which masking must leave alone."""
        added = self.backend.get_added_tokens_decoder()
        return tuple(sorted(i for i, token in added.items() if token.special))

    def encode(self, texts: Sequence[str], *, max_length: int) -> Encoded:
        """Encode texts with their special tokens, cutting those that are too long.

        A cut text keeps its closing special token.
        """
        encodings = self.backend.encode_batch_fast(list(texts))
        ids, cut = [], []
        for index, encoding in enumerate(encodings):
            if len(encoding.ids) > max_length:
                cut.append(index)
                encoding.truncate(max_length - 1)
                row = [*encoding.ids, self._closing]
            else:
                row = encoding.ids
            ids.append(np.asarray(row, np.int32))
        return Encoded(ids, cut)

    @property
    def _closing(self) -> int:
        return self.backend.encode("").ids[-1]


def _wordpiece(vocabulary: Mapping[str, int]) -> "tokenizers.Tokenizer":
    """Make bert-base-uncased's kind of tokenizer over a vocabulary."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    model = models.WordPiece(vocab=dict(vocabulary), unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    first, last = ((t, SPECIAL_TOKENS.index(t)) for t in ("[CLS]", "[SEP]"))
    backend.post_processor = processors.BertProcessing(last, first)
    return backend


def pad(
    texts: Sequence[np.ndarray], *, length: int, rows: int | None = None, pad_id: int
) -> Tokens:
    """Put each text into a row of its own.

    Args:
        texts: token ids, each of at most `length`.
        length: columns.
        rows: rows, at least as many as texts; further rows hold padding only.
        pad_id: the id written where there is no token.
    """
    shape = (len(texts) if rows is None else rows, length)
    ids = np.full(shape, pad_id, np.int32)
    segment_ids = np.full(shape, PADDING, np.int32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        segment_ids[row, : len(text)] = 1
    return Tokens(ids, segment_ids, texts=1)
