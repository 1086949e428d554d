import pytest
from store_pairs import pair_rule

from nomic_jax.data.sources.pairs import PairColumns
from nomic_jax.data.store.records import RowRule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_length": 2}, "query_length=2 must be at least 3"),
        ({"document_length": 0}, "document_length=0 must be at least 3"),
        ({"num_negatives": -1}, "num_negatives=-1 must be at least 0"),
        (
            {"num_negatives": 1, "columns": PairColumns(negatives=None)},
            "num_negatives=1 needs a column of negatives",
        ),
    ],
)
def test_a_rule_that_no_pair_can_meet_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pair_rule(**changes)


def test_all_problems_of_a_rule_are_named_at_once():
    with pytest.raises(ValueError, match="query_length=1.*num_negatives=-2"):
        pair_rule(query_length=1, num_negatives=-2)


@pytest.mark.parametrize("field", ["row_length", "rows_per_range"])
def test_rows_and_ranges_hold_something(field):
    fields = {"row_length": 8, "rows_per_range": 10, field: 0}
    with pytest.raises(ValueError, match=f"{field}=0 must be at least"):
        RowRule(**fields)
