"""The choice of λ: the largest one that cannot be told from the best.

    deficit(λ) = metric(best) − metric(λ),   λ* = max {λ : deficit(λ) ≤ SE(deficit(λ))}

The one-standard-error rule (Breiman et al. 1984, section 3.4.3) with the error of the *paired* difference, which is
much smaller than that of either mean: users are resampled for both alike (statistics.py), and SE is the standard
deviation of the replicates' differences. Of equally good λ the largest stays nearest to what was logged and is the most
robust to noise of the rewards (equation 15 of arXiv 2603.10279). It is a rule of thumb, not a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retilt.evaluation.statistics import Tally, replicated, verdict, versus


@dataclass(frozen=True)
class Candidate:
    """A trial that may be chosen."""

    name: str
    temperature: float
    """λ."""
    tally: Tally
    """Of its best epoch, on the same targets as the others'."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it was compared with."""

    chosen: str
    best: str
    """The candidate with the highest metric."""
    deficits: Mapping[str, Mapping[str, float | None]]
    """Of each temperature's best candidate by name: ``value``, ``se``, ``low`` and ``high`` of best − candidate."""


def value(tally: Tally, group: str, metric: str) -> float:
    """The mean of a metric over a group's targets; −∞ where there is none, so that it is never chosen."""
    found = tally.means(group)[metric]
    return float("-inf") if found is None else found


def deficit(best: Tally, other: Tally, group: str, metric: str) -> dict[str, float | None]:
    """``best`` − ``other``: value, standard error (both in the metric's unit) and 95% interval, paired by user."""
    paired = versus(best, other)[group][metric]
    difference_R = replicated(best, group)[metric][1:] - replicated(other, group)[metric][1:]
    drawn = difference_R[np.isfinite(difference_R)]
    se = float(drawn.std(ddof=1)) if len(drawn) > 1 else None
    return {"value": paired["value"], "se": se, "low": paired["low"], "high": paired["high"]}


def choose(candidates: list[Candidate], group: str, metric: str) -> Choice:
    """The rule of the module; of several candidates with one λ (other learning rates) only the best counts.

    Of equal values the larger λ counts as the better, then the one that comes first.
    """
    assert candidates, "nothing to choose from"
    by_value = sorted(candidates, key=lambda each: (-value(each.tally, group, metric), -each.temperature))
    best = by_value[0]
    of_temperature: dict[float, Candidate] = {}
    for each in by_value:
        of_temperature.setdefault(each.temperature, each)
    deficits = {each.name: deficit(best.tally, each.tally, group, metric) for each in of_temperature.values()}
    near = [each for each in of_temperature.values() if _within(deficits[each.name])]
    return Choice(max(near, key=lambda each: each.temperature).name, best.name, deficits)


def _within(found: Mapping[str, float | None]) -> bool:
    """At most one standard error; the best itself always is, with a deficit of 0 and an error of 0."""
    gap, se = found["value"], found["se"]
    return gap is not None and gap <= (se or 0.0)


def compared(chosen: Tally, other: Tally, group: str, metric: str) -> dict[str, Any]:
    """``chosen`` − ``other`` with its 95% interval, and ``standing``: better, worse, no difference, too few users."""
    found = versus(chosen, other)[group][metric]
    return {"value": found["value"], "low": found["low"], "high": found["high"], "standing": verdict(found)}
