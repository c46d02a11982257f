"""The picture of rewards."""

from __future__ import annotations

from retilt.evaluation.views import histogram


def test_few_levels_many_levels_and_none() -> None:
    few = histogram.png([[1.0, 10], [2.0, 30]])
    many = histogram.png([[i / 10, 1 + i] for i in range(100)])
    assert few is not None
    assert many is not None
    assert few[:8] == many[:8] == b"\x89PNG\r\n\x1a\n"
    assert few != many
    assert histogram.png(None) is None
    assert histogram.png([]) is None
