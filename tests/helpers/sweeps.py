"""Which combinations of several parameters are tried."""

import itertools
from collections.abc import Iterable, Mapping

import pytest


def pairwise(*axes: Iterable | Mapping[str, object]) -> list:
    """Try each pair of values of two parameters; all other combinations are a sweep.

    Most faults need one value or two (Kuhn et al. 2004, IEEE Transactions on Software
    Engineering 30(6)); `-m sweep` tries the rest.

    Args:
        axes: the values of each parameter; a mapping's keys are their ids.
    """
    named = [
        list(axis.items())
        if isinstance(axis, Mapping)
        else [(str(value), value) for value in axis]
        for axis in axes
    ]
    every = list(itertools.product(*(range(len(values)) for values in named)))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in every}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(every, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        chosen.append(best)
    return [
        pytest.param(
            *(values[place][1] for values, place in zip(named, case, strict=True)),
            id="-".join(
                values[place][0] for values, place in zip(named, case, strict=True)
            ),
            marks=() if case in chosen else pytest.mark.sweep,
        )
        for case in every
    ]
