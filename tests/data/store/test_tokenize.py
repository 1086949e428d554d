import collections
import dataclasses

import numpy as np
import pytest
from store_pairs import pair_rule, pair_source, tokenizer

from nomic_jax.data.sources.pairs import Pair, PairSource
from nomic_jax.data.store.records import RowRule
from nomic_jax.data.store.tokenize import tokenize_range


def records_of(source, rule, start=0, stop=None):
    counts = collections.Counter()
    stop = len(source) if stop is None else stop
    records = tokenize_range(
        source.rows(start, stop),
        rule,
        tokenizer(),
        source=source,
        start=start,
        counts=counts,
    )
    return list(records), counts


def ids(text, max_length=10_000):
    return tokenizer().encode([text], max_length=max_length).ids[0]


def test_texts_of_a_pair_are_encoded_with_their_prefixes_and_cut():
    source = pair_source(600, num_negatives=3)  # more than one call of the tokenizer
    rule = pair_rule(num_negatives=2)
    records, counts = records_of(source, rule)
    cut = collections.Counter()
    for pair, texts in zip(source.pairs, records, strict=True):
        expected = [
            ids("q: " + pair.query, 16),
            *(ids("d: " + t, 12) for t in (pair.document, *pair.negatives[:2])),
        ]
        assert len(texts) == 4
        for one, other in zip(texts, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        cut["cut_queries"] += len(ids("q: " + pair.query)) > 16
        cut["cut_documents"] += len(ids("d: " + pair.document)) > 12
        cut["cut_negatives"] += sum(
            len(ids("d: " + t)) > 12 for t in pair.negatives[:2]
        )
    total = sum(len(text) for texts in records for text in texts)
    assert counts["input_rows"] == 600 and counts["tokens"] == total
    assert {name: counts[name] for name in cut} == cut
    assert cut["cut_documents"] > 0 and cut["cut_negatives"] > cut["cut_documents"]


def test_a_record_over_the_length_is_refused_where_asked():
    pairs = [Pair("fox", "dogs"), Pair("fox", "dogs", ("lazy " * 20,))]
    source = PairSource("foxes", pairs, "", "")
    rule = pair_rule(too_long="error", num_negatives=1, too_few_negatives="drop")
    tokens = len(ids("d: " + "lazy " * 20))
    with pytest.raises(
        ValueError,
        match=f"source 'foxes', pair 1: the negative has {tokens} tokens with its "
        "prefix, document_length=12 is the most",
    ):
        records_of(source, rule)
    source = PairSource("foxes", [Pair("lazy " * 20, "dogs")], "", "")
    with pytest.raises(ValueError, match="pair 0: the query has .* query_length=16"):
        records_of(source, pair_rule(too_long="error"))
    source = PairSource(
        "foxes", [Pair("fox", "dogs"), Pair("fox", "dogs " * 20)], "", ""
    )
    with pytest.raises(ValueError, match="pair 1: the document has"):
        records_of(source, pair_rule(too_long="error"))


RAGGED = PairSource(
    "ragged",
    [
        Pair("one", "fox", ("dogs", "wizards", "lazy")),
        Pair("two", "fox", ("dogs",)),
        Pair("three", "fox"),
    ],
    "",
    "",
)


def test_ragged_negatives_are_an_error_that_names_the_record():
    with pytest.raises(
        ValueError,
        match="source 'ragged', pair 1: 1 negatives, num_negatives=2 are needed; lower",
    ):
        records_of(RAGGED, pair_rule(num_negatives=2))


def test_pairs_with_too_few_negatives_are_dropped_and_counted():
    rule = pair_rule(num_negatives=2, too_few_negatives="drop")
    records, counts = records_of(RAGGED, rule)
    assert len(records) == 1 and counts["dropped_records"] == 2
    np.testing.assert_array_equal(records[0][3], ids("d: wizards"))


def test_negatives_are_repeated_where_asked_and_there_are_any():
    rule = pair_rule(num_negatives=2, too_few_negatives="repeat")
    two = dataclasses.replace(RAGGED, pairs=RAGGED.pairs[:2])
    records, counts = records_of(two, rule)
    assert counts["records_with_repeated_negatives"] == 1
    for text in records[1][2:]:
        np.testing.assert_array_equal(text, ids("d: dogs"))
    with pytest.raises(ValueError, match="pair 2: 0 negatives.*none to repeat"):
        records_of(RAGGED, rule)


@pytest.mark.parametrize("row_length", [3, 16, 61])
def test_rows_hold_the_documents_one_after_another(row_length):
    source = pair_source(700)
    rule = RowRule(row_length=row_length, column="document", rows_per_range=700)
    records, counts = records_of(source, rule)
    assert all(sum(map(len, pieces)) == row_length for pieces in records)
    assert all(len(piece) for pieces in records for piece in pieces)
    got = np.concatenate([piece for pieces in records for piece in pieces])
    documents = [ids(pair.document) for pair in source.pairs]
    stream = np.concatenate(documents)
    np.testing.assert_array_equal(got, stream[: len(got)])
    assert counts["lost_tokens"] == len(stream) - len(got) < row_length
    assert counts["tokens"] == len(got)
    # A piece ends where a document does, or with its row.
    ends = set(np.cumsum([len(document) for document in documents]).tolist())
    ends |= set(range(0, len(got) + 1, row_length))
    pieces = np.cumsum([len(piece) for pieces in records for piece in pieces])
    assert pieces.tolist() == sorted(end for end in ends if 0 < end <= len(got))


def test_a_range_begins_with_its_own_rows():
    source = pair_source(20)
    rule = RowRule(row_length=16, column="document", rows_per_range=10)
    second, _ = records_of(source, rule, 10, 20)
    tail = dataclasses.replace(source, pairs=source.pairs[10:])
    expected, _ = records_of(tail, rule)
    assert len(second) == len(expected) > 0
    np.testing.assert_array_equal(second[0][0], expected[0][0])


def test_a_bad_row_is_named_by_its_number_in_the_source():
    pairs = [Pair("fox", "dogs")] * 7 + [Pair("fox", " ")]
    source = PairSource("foxes", pairs, "", "")
    with pytest.raises(ValueError, match="source 'foxes', pair 7: .*blank"):
        records_of(source, pair_rule(), 5, 8)


def test_a_tokenizers_digest_survives_saving_and_tells_others_apart(tmp_path):
    from nomic_jax.data.tokenizer import TextTokenizer

    tokenizer().save(tmp_path)
    assert TextTokenizer.from_folder(tmp_path).digest == tokenizer().digest
    other = TextTokenizer.train(["the quick brown fox"] * 3, vocab_size=100)
    assert other.digest != tokenizer().digest


BLANKS = [
    Pair("one", "fox", ("dogs", " ", "wizards")),
    Pair(" ", "fox"),
    Pair("three", ""),
    Pair("four", "lazy", ("dogs",)),
]


@pytest.mark.parametrize(
    ("first", "column"), [(0, r"negatives\[1\]"), (1, "query"), (2, "document")]
)
def test_a_blank_text_is_an_error_that_names_the_way_out(first, column):
    source = PairSource("blanks", BLANKS, "", "")
    message = f"pair {first}: column '{column}' is blank; .* set blank to 'drop'"
    with pytest.raises(ValueError, match=message):
        records_of(source, pair_rule(num_negatives=1), first, first + 1)
    if column == "document":
        with pytest.raises(ValueError, match=message):
            records_of(source, RowRule(row_length=8, column="document"))


def test_blank_texts_are_dropped_where_asked_and_counted():
    source = PairSource("blanks", BLANKS, "", "")
    records, counts = records_of(source, pair_rule(num_negatives=1, blank="drop"))
    assert [len(texts) for texts in records] == [3, 3]
    assert counts["dropped_blank"] == 2 and counts["blank_negatives"] == 1
    assert counts["input_rows"] == 4
    # What is left of the negatives meets the rule for too few.
    both = pair_rule(num_negatives=2, blank="drop", too_few_negatives="drop")
    records, counts = records_of(source, both)
    np.testing.assert_array_equal(records[0][3], ids("d: wizards"))
    assert len(records) == 1 and counts["dropped_records"] == 1
    rows = RowRule(row_length=3, column="document", blank="drop")
    records, counts = records_of(source, rows)
    assert counts["dropped_blank"] == 1 and counts["tokens"] == 9 == 3 * len(records)


class Nowhere(PairSource):
    """A source whose places take long to find."""

    def place(self, row):
        raise AssertionError("the place of a row that is as it should be")


@pytest.mark.parametrize("kind", ["pairs", "rows"])
def test_places_are_looked_up_for_errors_alone(kind):
    source = Nowhere("foxes", pair_source(20).pairs, "", "")
    rows = RowRule(row_length=8, column="document")
    records, _ = records_of(source, pair_rule() if kind == "pairs" else rows)
    assert records
