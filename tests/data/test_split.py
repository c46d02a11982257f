"""Cuts by hand, and the properties that every split needs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retilt.data.split import SHORTEST, Cuts, bounds, bounds_array


@pytest.mark.parametrize(
    ("length", "k", "expected"),
    [
        (20, 1, Cuts(18, 19)),
        (3, 1, Cuts(1, 2)),
        (30, 10, Cuts(10, 20)),
        (25, 10, Cuts(8, 15)),  # test 10, validation ⌊15/2⌋
        (7, 10, Cuts(2, 4)),  # test ⌊7/2⌋ = 3, validation ⌊4/2⌋ = 2
        (3, 10, Cuts(1, 2)),
        (2, 10, Cuts(1, 1)),  # no validation event: too short
    ],
)
def test_by_hand(length, k, expected):
    assert bounds(length, k) == expected


@given(st.integers(SHORTEST, 10_000), st.integers(1, 50))
def test_every_part_has_an_event_and_at_most_k_are_held_out(length, k):
    cuts = bounds(length, k)
    assert 0 < cuts.train < cuts.validation < length
    assert length - cuts.validation <= k
    assert cuts.validation - cuts.train <= k


def test_many_users_at_once():
    lengths = np.arange(3, 60)
    train, validation = bounds_array(lengths, 10)
    assert [Cuts(int(a), int(b)) for a, b in zip(train, validation, strict=True)] == [
        bounds(int(n), 10) for n in lengths
    ]
