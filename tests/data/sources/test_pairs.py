import pytest

from nomic_jax.data.sources.pairs import (
    Pair,
    PairColumns,
    PairSource,
    fingerprint,
    split_held_out,
)
from nomic_jax.data.sources.source import Source


def source(pairs, name="answers"):
    return PairSource(name, pairs, "search_query: ", "search_document: ")


def numbered(count, documents):
    return [Pair(f"query {i}", f"document {i % documents}") for i in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_loses_no_pair_and_keeps_a_document_on_one_side(seed):
    pairs = numbered(300, 100)
    train, held_out = split_held_out(source(pairs), share=0.2, seed=seed)
    assert sorted([*train.pairs, *held_out.pairs], key=pairs.index) == pairs
    assert len(held_out) == 60
    assert not {p.document for p in train.pairs} & {p.document for p in held_out.pairs}
    assert train.query_prefix == held_out.query_prefix == "search_query: "


def test_split_does_not_depend_on_the_order_of_the_pairs():
    pairs = numbered(200, 100)
    one = split_held_out(source(pairs), share=0.1, seed=3)
    other = split_held_out(source(pairs[::-1]), share=0.1, seed=3)
    assert [part.pairs for part in one] == [part.pairs[::-1] for part in other]


def test_another_seed_holds_out_other_documents():
    halves = [
        split_held_out(source(numbered(99, 99)), share=0.3, seed=s) for s in (0, 1)
    ]
    assert halves[0][1].pairs != halves[1][1].pairs


def test_split_stops_at_the_number_asked_for():
    _, held_out = split_held_out(
        source(numbered(500, 500)), share=0.5, seed=0, at_most=7
    )
    assert len(held_out) == 7


@pytest.mark.parametrize(
    ("pairs", "arguments", "problem"),
    [
        (numbered(3, 3), {"share": 0.1}, "answers: 3 pairs over 3 documents"),
        (numbered(9, 1), {"share": 0.5}, "into 0 to train on and 9 held out"),
        (numbered(99, 99), {"share": 0.1, "at_least": 50}, "at least 50"),
        (numbered(9, 9), {"share": 1.0}, "held-out share is 1.0"),
        ([], {"share": 0.1}, "0 pairs"),
    ],
)
def test_a_split_with_too_few_pairs_is_refused_with_their_number(
    pairs, arguments, problem
):
    with pytest.raises(ValueError, match=problem):
        split_held_out(source(pairs), seed=0, **arguments)


def test_fingerprint_tells_apart_every_text_and_every_boundary():
    variants = [
        ([source([Pair("ab", "c")])], []),
        ([source([Pair("a", "bc")])], []),
        ([source([Pair("ab", "c", ("d",))])], []),
        ([source([Pair("ab", "c")], name="other")], []),
        ([source([Pair("ab", "c")])], ["d"]),
        ([source([Pair("ab", "c"), Pair("d", "e")])], []),
        ([source([Pair("d", "e"), Pair("ab", "c")])], []),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    assert fingerprint(*variants[0]) == fingerprint(*variants[0])


def test_pairs_in_memory_are_a_source_whose_rows_are_its_pairs_again():
    pairs = [Pair("a", "b", ("c", "d")), Pair("e", "f"), Pair("g", "h")]
    answers = source(pairs)
    assert isinstance(answers, Source)
    columns = PairColumns()
    rows = list(answers.rows(1, 9))
    assert [columns.pair(row, "here") for row in rows] == pairs[1:]
    assert answers.place(2) == "source 'answers', pair 2"
    assert answers.fingerprint != source(pairs[::-1]).fingerprint


def test_columns_make_a_pair_of_a_row():
    row = {"q": "a", "pos": "b", "neg": "c", "other": 1}
    assert PairColumns("q", "pos", "neg").pair(row, "x") == Pair("a", "b", ("c",))
    assert PairColumns("q", "pos", None).pair(row, "x") == Pair("a", "b")
    assert PairColumns("q", "q", None).pair(row, "x") == Pair("a", "a")
    without = {"q": "a", "pos": "b", "neg": None}
    assert PairColumns("q", "pos", "neg").pair(without, "x") == Pair("a", "b")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "a", "documents": "b"}, "x:3: no column 'document'; did you mean"),
        ({"query": "a", "document": " "}, "x:3: column 'document' is blank"),
        ({"query": "a", "document": "b", "negatives": 4}, "'negatives' is a number"),
        ({"query": "a", "document": "b", "negatives": ["c", None]}, "negatives\\[1\\]"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_its_place(row, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        PairColumns().pair(row, "x:3")
    assert str(raised.value).startswith("x:3: ")
