import dataclasses

import numpy as np
import pytest

from nomic_jax.curation.mining import (
    Mining,
    mine_negatives,
    mined_pairs,
    with_negatives,
)
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.embedder import Embedder
from nomic_jax.sources.pairs import Pair, PairSource
from nomic_jax.store.corpus import PAIRS, is_prepared, read_sources
from nomic_jax.store.store import open_stores
from nomic_jax.tokenizer import TextTokenizer

DOCUMENTS = [f"document number {i}" for i in range(12)]


LENGTHS = {"query_length": 16, "document_length": 16}


class Encoder(Embedder):
    """Stands for an `Embedder`: a text's vector is drawn from the text."""

    def __init__(self):  # there is no model
        texts = DOCUMENTS + ["query 0"] * 3
        self.tokenizer = TextTokenizer.train(texts, vocab_size=100)

    def encoders(self, query_prefix, document_prefix):
        assert query_prefix == "search_query: "
        assert document_prefix == "search_document: "
        return self.encode, self.encode

    def encode(self, texts, *, progress):
        assert len(set(texts)) == len(texts)  # nothing is embedded twice
        rows = [
            np.random.default_rng(list(text.encode())).normal(size=16) for text in texts
        ]
        rows = np.array(rows, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def source(name="forum"):
    """Three queries have several answers; documents answer several queries."""
    pairs = [Pair(f"query {i % 9}", DOCUMENTS[(5 * i) % 12]) for i in range(12)]
    return PairSource(name, pairs, "search_query: ", "search_document: ")


def answers(pairs):
    found = {}
    for pair in pairs:
        found.setdefault(pair.query, set()).add(pair.document)
    return found


@pytest.mark.parametrize("margin", [None, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_every_pair_gets_count_negatives_and_none_answers_its_query(seed, margin):
    mined = with_negatives(
        source(), Encoder(), Mining(count=4, pool=6, seed=seed, margin=margin)
    )
    assert [(p.query, p.document) for p in mined.pairs] == [
        (p.query, p.document) for p in source().pairs
    ]
    known = answers(source().pairs)
    assert max(map(len, known.values())) == 2
    for pair in mined.pairs:
        assert len(pair.negatives) == len(set(pair.negatives)) == 4
        assert set(pair.negatives) <= set(DOCUMENTS) - known[pair.query]


def test_the_seed_chooses_and_the_same_seed_repeats():
    def mined(seed):
        settings = Mining(count=2, pool=8, seed=seed)
        return with_negatives(source(), Encoder(), settings).pairs

    assert mined(0) == mined(0)
    assert mined(0) != mined(1)


def test_further_documents_are_taken_and_the_query_itself_never():
    pairs = [Pair(f"document number {i}", f"answer {i}") for i in range(4)]
    encode = Encoder().encode
    mined = mined_pairs(
        pairs,
        lambda texts: encode(texts, progress=False),
        lambda texts: encode(texts, progress=False),
        Mining(count=14, pool=14, margin=None),
        name="forum",
        corpus=DOCUMENTS,
    )
    for pair in mined:
        # 4 answers and 12 documents, less the query's answer and the query itself.
        others = {f"answer {i}" for i in range(4)} | set(DOCUMENTS)
        assert set(pair.negatives) == others - {pair.query, pair.document}


def test_pairs_whose_query_has_too_few_negatives_are_dropped_and_all_is_an_error():
    settings = {"count": 11, "pool": 11, "margin": None, "too_few": "drop"}
    mined = with_negatives(source(), Encoder(), Mining(**settings))
    known = answers(source().pairs)
    kept = [pair for pair in source().pairs if len(known[pair.query]) == 1]
    assert [(p.query, p.document) for p in mined.pairs] == [
        (p.query, p.document) for p in kept
    ]
    assert 0 < len(kept) < 12
    with pytest.raises(ValueError, match="too_few='drop' leaves no pair"):
        with_negatives(
            source(), Encoder(), Mining(**settings | {"count": 12, "pool": 12})
        )


def test_a_source_with_too_few_documents_is_named():
    with pytest.raises(ValueError) as caught:
        with_negatives(source(), Encoder(), Mining(count=11, pool=11))
    message = str(caught.value)
    for part in ("'forum' has 12 documents", "2 answer one query; 11 others"):
        assert part in message.replace("of which ", "")


def test_what_is_written_is_read_unchanged_by_the_contrastive_stage(tmp_path):
    sources = (source(), dataclasses.replace(source(), name="letters"))
    settings = Mining(count=3, pool=6)
    encoder = Encoder()
    mine_negatives(sources, encoder, settings, tmp_path, **LENGTHS)
    assert is_prepared(tmp_path)
    read = read_sources(tmp_path, "train")
    expected = [with_negatives(s, Encoder(), settings) for s in sources]
    assert [(s.name, list(s.pairs)) for s in read] == [
        (s.name, list(s.pairs)) for s in expected
    ]
    stores = open_stores(tmp_path / PAIRS)
    assert list(stores) == ["forum", "letters"]
    schedule = Schedule.over({"forum": 12}, batch_size=5, seed=0)
    batch_at = PairBatches(
        {"forum": stores["forum"]},
        schedule,
        num_negatives=3,
        negatives="first",
        pad_id=0,
        seed=0,
        **LENGTHS,
    )
    batch = batch_at(0).arrays
    _, records = schedule.at(0)
    texts = [
        text
        for record in records
        for pair in [expected[0].pairs[record]]
        for text in (pair.document, *pair.negatives)
    ]
    prefixed = ["search_document: " + text for text in texts]
    ids = encoder.tokenizer.encode(prefixed, max_length=16).ids
    tokens, slots = batch.texts.tokens, batch.texts.slot_lengths.shape[1]
    for place, expected_ids in zip(batch.document_places, ids, strict=True):
        row, slot = divmod(int(batch.slots[0, place]), slots)
        found = tokens.ids[row][tokens.segment_ids[row] == slot + 1]
        np.testing.assert_array_equal(found, expected_ids)


def test_nothing_says_done_where_a_source_cannot_be_mined(tmp_path):
    few = PairSource("few", source().pairs[:2], "search_query: ", "search_document: ")
    with pytest.raises(ValueError, match="'few' has 2 documents"):
        mine_negatives((source(), few), Encoder(), Mining(count=3), tmp_path, **LENGTHS)
    assert not list(tmp_path.iterdir())
