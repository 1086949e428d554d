import numpy as np
import pytest

from nomic_jax.data.pairs import TokenizedPairs
from nomic_jax.data.sources import Pair, PairSource
from nomic_jax.tokenizer import TextTokenizer

WORDS = [f"{a}{b}" for a in "klmnpr" for b in "aeiou"]
POOL = 5  # hard negatives of each query


@pytest.fixture(scope="module")
def tokenizer():
    prompts = ["search_query: search_document: "] * 9
    return TextTokenizer.train(WORDS * 9 + prompts, vocab_size=200)


def source(count=8):
    pairs = [
        Pair(
            f"{WORDS[i]} ka",
            f"{WORDS[i]} la",
            tuple(f"{WORDS[i]} {word}" for word in WORDS[20 : 20 + POOL]),
        )
        for i in range(count)
    ]
    return PairSource("words", pairs, "search_query: ", "search_document: ")


def tokenized(tokenizer, num_negatives=2, query_length=16, document_length=16):
    return TokenizedPairs.of(
        source(),
        tokenizer,
        query_length=query_length,
        document_length=document_length,
        num_negatives=num_negatives,
    )


def texts(tokenizer, tokens):
    rows = zip(tokens.ids, tokens.mask, strict=True)
    return [tokenizer.backend.decode(ids[mask].tolist()) for ids, mask in rows]


def normal(text):
    return text.replace(" ", "").lower()


def make(pairs, records, num_negatives=2, seed=0, step=0):
    return pairs.batch(
        np.array(records),
        num_negatives=num_negatives,
        seed=seed,
        step=step,
        pad_id=0,
    )


def test_each_positive_is_followed_by_negatives_of_its_own_query(tokenizer):
    records = [3, 0, 6]
    batch = make(tokenized(tokenizer), records)
    assert len(batch.query.ids) == 3 and len(batch.document.ids) == 9
    queries = texts(tokenizer, batch.query)
    documents = texts(tokenizer, batch.document)
    for row, record in enumerate(records):
        pair = source().pairs[record]
        assert normal(queries[row]) == normal("search_query: " + pair.query)
        positive, *negatives = documents[3 * row : 3 * row + 3]
        assert normal(positive) == normal("search_document: " + pair.document)
        allowed = {normal("search_document: " + text) for text in pair.negatives}
        found = {normal(text) for text in negatives}
        assert len(found) == 2 and found <= allowed


def test_negatives_are_drawn_without_replacement(tokenizer):
    pairs = tokenized(tokenizer)
    for step in range(10):  # with replacement one draw in five would repeat
        for drawn in negatives(make(pairs, range(8), step=step)):
            assert len({row.tobytes() for row in drawn}) == 2


def test_texts_keep_their_frame_of_special_tokens(tokenizer):
    batch = make(tokenized(tokenizer), [1, 2])
    for tokens in (batch.query, batch.document):
        lengths = tokens.mask.sum(axis=1)
        assert (tokens.ids[:, 0] == tokenizer.token_id("[CLS]")).all()
        last = tokens.ids[np.arange(len(lengths)), lengths - 1]
        assert (last == tokenizer.token_id("[SEP]")).all()
        assert (tokens.ids[~tokens.mask] == 0).all()


def negatives(batch):
    ids = batch.document.ids
    return ids.reshape(-1, 3, ids.shape[1])[:, 1:]


def test_negatives_are_keyed_by_seed_step_and_row(tokenizer):
    pairs = tokenized(tokenizer)
    records = [4] * 6  # the same query in each row: only the key differs
    first = negatives(make(pairs, records))
    np.testing.assert_array_equal(first, negatives(make(pairs, records)))
    drawn = {row.tobytes() for row in first}
    assert len(drawn) > 1
    assert (first != negatives(make(pairs, records, step=1))).any()
    assert (first != negatives(make(pairs, records, seed=1))).any()


def test_every_negative_comes_up_in_time(tokenizer):
    pairs = tokenized(tokenizer)
    drawn = {
        row.tobytes()
        for step in range(40)
        for row in negatives(make(pairs, [2], step=step))[0]
    }
    assert len(drawn) == POOL


def test_without_negatives_each_query_has_one_document(tokenizer):
    batch = make(tokenized(tokenizer, num_negatives=0), [1, 5], num_negatives=0)
    documents = [normal(text) for text in texts(tokenizer, batch.document)]
    pairs = source().pairs
    assert documents == [
        normal("search_document: " + pairs[i].document) for i in (1, 5)
    ]


def test_a_query_with_too_few_negatives_is_named(tokenizer):
    with pytest.raises(ValueError) as caught:
        tokenized(tokenizer, num_negatives=POOL + 1)
    message = str(caught.value)
    for part in ("'words', pair 0", "'ka ka'", "has 5 hard", "takes 6"):
        assert part in message


def test_rows_are_cut_and_padded_to_the_lengths_asked_for(tokenizer):
    # 5 and 6 are shorter than the shortest bucket: no row is padded beyond them.
    batch = make(tokenized(tokenizer, query_length=5, document_length=6), [0, 1])
    assert batch.query.ids.shape == (2, 5) and batch.query.mask.all()
    assert batch.document.ids.shape == (6, 6) and batch.document.mask.all()
    assert (batch.query.ids[:, -1] == tokenizer.token_id("[SEP]")).all()
