import numpy as np
import pytest

from nomic_jax.curation.mining import Mining, distinct_texts, mined_pairs
from nomic_jax.data.sources.pairs import Pair

DOCUMENTS = [f"document number {i}" for i in range(12)]
# Three queries have several answers; documents answer several queries.
PAIRS = [Pair(f"query {i % 9}", DOCUMENTS[(5 * i) % 12]) for i in range(12)]


def encode(texts):
    """A text's vector is drawn from the text."""
    assert len(set(texts)) == len(texts)  # nothing is embedded twice
    rows = [
        np.random.default_rng(list(text.encode())).normal(size=16) for text in texts
    ]
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_negatives(settings, pairs=PAIRS, corpus=()):
    texts = distinct_texts(pairs, settings, name="forum", corpus=corpus)
    embeddings = encode(texts.queries), encode(texts.documents)
    return mined_pairs(pairs, texts, *embeddings, settings, name="forum")


def answers(pairs):
    found = {}
    for pair in pairs:
        found.setdefault(pair.query, set()).add(pair.document)
    return found


@pytest.mark.parametrize("margin", [None, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_every_pair_gets_count_negatives_and_none_answers_its_query(seed, margin):
    mined = with_negatives(Mining(count=4, pool=6, seed=seed, margin=margin))
    assert [(p.query, p.document) for p in mined] == [
        (p.query, p.document) for p in PAIRS
    ]
    known = answers(PAIRS)
    assert max(map(len, known.values())) == 2
    for pair in mined:
        assert len(pair.negatives) == len(set(pair.negatives)) == 4
        assert set(pair.negatives) <= set(DOCUMENTS) - known[pair.query]


def test_the_seed_chooses_and_the_same_seed_repeats():
    def mined(seed):
        settings = Mining(count=2, pool=8, seed=seed)
        return with_negatives(settings)

    assert mined(0) == mined(0)
    assert mined(0) != mined(1)


def test_further_documents_are_taken_and_the_query_itself_never():
    pairs = [Pair(f"document number {i}", f"answer {i}") for i in range(4)]
    settings = Mining(count=14, pool=14, margin=None)
    mined = with_negatives(settings, pairs, DOCUMENTS)
    for pair in mined:
        # 4 answers and 12 documents, less the query's answer and the query itself.
        others = {f"answer {i}" for i in range(4)} | set(DOCUMENTS)
        assert set(pair.negatives) == others - {pair.query, pair.document}


def test_pairs_whose_query_has_too_few_negatives_are_dropped_and_all_is_an_error():
    settings = {"count": 11, "pool": 11, "margin": None, "too_few": "drop"}
    mined = with_negatives(Mining(**settings))
    known = answers(PAIRS)
    kept = [pair for pair in PAIRS if len(known[pair.query]) == 1]
    assert [(p.query, p.document) for p in mined] == [
        (p.query, p.document) for p in kept
    ]
    assert 0 < len(kept) < 12
    with pytest.raises(ValueError, match="too_few='drop' leaves no pair"):
        with_negatives(Mining(**settings | {"count": 12, "pool": 12}))


def test_a_source_with_too_few_documents_is_named():
    with pytest.raises(ValueError) as caught:
        with_negatives(Mining(count=11, pool=11))
    message = str(caught.value)
    for part in ("'forum' has 12 documents", "10 could be negatives of 'query 0'"):
        assert part in message.replace("of which ", "")


def test_what_reads_like_an_answer_or_the_query_is_no_negative():
    pairs = [
        Pair("How tall is Everest?", "8,849 metres high"),
        *(Pair(f"query {i}", DOCUMENTS[i]) for i in range(4)),
        Pair("and how high", "8,849  Metres HIGH"),
        Pair("again", "how tall  is everest?"),
    ]
    settings = Mining(count=4, pool=4, margin=None)
    (first, *_) = with_negatives(settings, pairs)
    assert set(first.negatives) == set(DOCUMENTS[:4])
    with pytest.raises(ValueError, match="has 7 documents, of which 4 could be"):
        with_negatives(Mining(count=5, pool=5, margin=None), pairs)
