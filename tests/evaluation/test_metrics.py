"""Metrics of single ranks: values worked out by hand from eqs. 21 to 23 of arXiv:2603.10279."""

from __future__ import annotations

from math import log2

import pytest
import torch

from retilt.evaluation.metrics import MISS, NAMES, TITLES, metrics


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (1, [1, 1, 1, 1, 1]),
        (2, [1 / log2(3), 1 / log2(3), 1, 1, 1 / 2]),
        (10, [1 / log2(11), 1 / log2(11), 1, 1, 1 / 10]),
        (11, [0, 1 / log2(12), 0, 1, 1 / 11]),
        (50, [0, 1 / log2(51), 0, 1, 1 / 50]),
        (51, [0, 0, 0, 0, 1 / 51]),
    ],
)
def test_values_by_hand(rank: int, expected: list[float]) -> None:
    assert metrics(torch.tensor([rank])).tolist()[0] == pytest.approx(expected, rel=1e-14)


def test_a_miss_counts_exactly_zero_everywhere() -> None:
    assert metrics(torch.tensor([MISS, 3]))[0].tolist() == [0.0] * 5


def test_shape_and_type_without_targets() -> None:
    found = metrics(torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0, len(NAMES))
    assert found.dtype == torch.float64
    assert tuple(TITLES) == NAMES
