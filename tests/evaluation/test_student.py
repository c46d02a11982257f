"""Student's t against printed tables, and intervals by hand."""

from __future__ import annotations

import math

import pytest

from retilt.evaluation import student


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (29, 2.045), (120, 1.980)],
)
def test_quantiles_are_those_of_printed_tables(freedom: int, expected: float) -> None:
    assert round(student.quantile(freedom), 3) == expected


def test_quantile_inverts_the_probability() -> None:
    t = student.quantile(6, 0.8)
    assert t == pytest.approx(1.440, abs=5e-4)
    assert student.within(math.atan(t / math.sqrt(6)), 6) == pytest.approx(0.8, abs=1e-12)


def test_interval_of_three_values() -> None:
    # Mean 2, SD 1: 2 ± 4.3027 / √3.
    assert student.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_one_value_has_no_interval() -> None:
    assert student.interval([1.0]) == (None, None)
