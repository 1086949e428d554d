import dataclasses

import pytest
from stored_pairs import random_store

from nomic_jax.data.schedule import (
    PairSourceConfig,
    check_names,
    listed_stores,
    pairs_taken,
)

LISTED = (
    PairSourceConfig("words", "q: ", "d: ", 64),
    PairSourceConfig("verse", "clustering: ", "clustering: ", 32),
)


def store(name, records, query_prefix, document_prefix):
    rule = {"query_length": 12, "document_length": 40}
    rule |= {"query_prefix": query_prefix, "document_prefix": document_prefix}
    return random_store(name, records, rule=rule)


def stores(**changes):
    """The listed stores, in another order, or with other arguments in their place."""
    kept = {source.name: dataclasses.astuple(source) for source in reversed(LISTED)}
    made = {name: (n, pairs, q, d) for name, (n, q, d, pairs) in kept.items()}
    made |= changes
    return {name: store(*given) for name, given in made.items() if given}


def test_stores_come_in_the_order_they_are_listed_in():
    found = stores()
    assert list(found) == ["verse", "words"]
    assert list(listed_stores(LISTED, found)) == ["words", "verse"]
    assert listed_stores(LISTED, found)["verse"] is found["verse"]


def test_an_epoch_takes_the_listed_number_of_a_store_that_holds_more():
    found = stores(words=("words", 65, "q: ", "d: "))
    assert listed_stores(LISTED, found)["words"] is found["words"]
    assert pairs_taken(LISTED, found) == {"words": 64, "verse": 32}
    assert pairs_taken((), found) == {"verse": 32, "words": 65}


def test_without_a_list_whatever_there_is_is_taken():
    found = stores()
    assert listed_stores((), found) == found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verse": None}, "'verse' is listed and has no store"),
        ({"word": ("word", 9, "", "")}, "'word' has a store and is not listed: did"),
        ({"words": ("words", 64, "q: ", "")}, "document_prefix='', 'd: ' is listed"),
        ({"words": ("words", 64, "Q: ", "d: ")}, "query_prefix='Q: ', 'q: ' is listed"),
        ({"words": ("words", 63, "q: ", "d: ")}, "has 63 pairs, 64 are listed"),
    ],
)
def test_another_store_than_is_listed_is_refused(changes, said):
    with pytest.raises(ValueError, match="not the 2 sources that the config") as caught:
        listed_stores(LISTED, stores(**changes))
    assert said in str(caught.value)


def test_every_difference_is_named_in_one_line():
    changes = {
        "words": ("words", 63, "", ""),
        "verse": None,
        "more": ("more", 9, "", ""),
    }
    with pytest.raises(ValueError) as caught:
        listed_stores(LISTED, stores(**changes))
    said = str(caught.value)
    for part in ("63 pairs", "query_prefix", "document_prefix", "'verse'", "'more'"):
        assert part in said
    assert "\n" not in said


def test_a_list_without_meaning_is_refused():
    with pytest.raises(ValueError, match="pairs=0 must be at least 1"):
        PairSourceConfig("words", "", "", 0)
    with pytest.raises(ValueError, match="listed twice: words"):
        check_names((*LISTED, LISTED[0]))
