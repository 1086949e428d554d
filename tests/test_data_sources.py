import subprocess
import sys

import pytest

from nomic_jax.data.sources import (
    Pair,
    PairSource,
    fingerprint,
    split_held_out,
    stable_hash,
)


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


def test_hashes_are_those_of_any_other_process():
    code = "from nomic_jax.data.sources import stable_hash as h; print(h('é', seed=5))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
    )
    assert int(other.stdout) == stable_hash("é", seed=5) != stable_hash("é")


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
