"""The radix sort against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from retilt.data.sorting import stable_order


@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_order_of_lexsort(rows, seed):
    random = np.random.default_rng(seed)
    keys = [
        random.integers(-(2**63), 2**63 - 1, rows),
        random.integers(0, 3, rows).astype(np.int32) * 1_000_000,
        random.integers(-5, 70_000, rows),
        np.arange(rows, dtype=np.int64) << 40,
        np.zeros(rows, dtype=np.int64),
    ]
    for chosen in (keys[:1], keys[1:2], keys, keys[::-1], [keys[3], keys[1]], [keys[4], keys[3], keys[2]]):
        np.testing.assert_array_equal(stable_order(chosen), np.lexsort(chosen))


def test_the_ends_of_the_range():
    key = np.array([2**63 - 1, -(2**63), 0, -1])
    assert stable_order([key]).tolist() == [1, 3, 2, 0]
