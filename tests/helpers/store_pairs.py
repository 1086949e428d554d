"""A source of pairs of many lengths, a tokenizer of its words, and a folder's bytes."""

import functools
import random

from nomic_jax.data.sources.pairs import Pair, PairSource
from nomic_jax.data.store.records import PairRule
from nomic_jax.data.tokenizer import TextTokenizer

WORDS = "the quick brown fox jumps over lazy dogs while seven wizards watch".split()


def pair_source(count, *, name="foxes", num_negatives=0, seed=0):
    rng = random.Random(seed)

    def text(longest):
        return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    pairs = [
        Pair(f"{i} {text(5)}", text(20), tuple(text(20) for _ in range(num_negatives)))
        for i in range(count)
    ]
    return PairSource(name, pairs, "q: ", "d: ")


@functools.cache
def tokenizer():
    texts = [" ".join(WORDS), "q: d: 0 1 2 3 4 5 6 7 8 9"] * 3
    return TextTokenizer.train(texts, vocab_size=200)


def pair_rule(**changes):
    fields = dict(
        query_prefix="q: ", document_prefix="d: ", query_length=16, document_length=12
    )
    return PairRule(**{**fields, **changes})


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
