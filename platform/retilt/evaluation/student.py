"""Intervals from a handful of seeds: Student's t. In closed form, as the project does without SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retilt.evaluation.statistics import LEVEL

_HALVINGS = 60
"""Of an interval of angles: more than a double can tell apart."""


def within(angle: float, freedom: int) -> float:
    """P(|T| ≤ √ν · tan θ) for ν degrees of freedom: Abramowitz & Stegun 26.7.3 and 26.7.4, a finite sum.

    >>> round(within(math.pi / 4, 1), 6)  # Cauchy: half of it lies between -1 and 1
    0.5
    """
    odd = freedom % 2
    cosine, term, total = math.cos(angle), 1.0, 0.0
    for k in range(freedom // 2):
        if k:
            term *= (2 * k - 1 + odd) / (2 * k + odd) * cosine**2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * cosine * total)


def quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with P(|T| ≤ t) = ``level``, such as 4.303 for two degrees of freedom and 95%."""
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Mean ± t · SD / √S over the values of S seeds; None, None for fewer than two, which tell nothing of spread."""
    seeds = len(values)
    if seeds < 2:
        return None, None
    mean = math.fsum(values) / seeds
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (seeds - 1))
    reach = quantile(seeds - 1) * deviation / math.sqrt(seeds)
    return mean - reach, mean + reach
