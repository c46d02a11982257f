"""Whether today's data are still those on which λ was searched: the stated test behind a warm choice.

Compared are the training rewards' distribution and four ratios. Each is none, little or much; the largest counts.

    what              measure                                        little from   much above
    psi               Σ_b (p_b − q_b) ln(p_b / q_b) of the rewards   .10           .25
    ess               ESS/n that the previous λ leaves               × 1.10        × 1.25
    events_per_user   events ÷ users                                 × 1.10        × 1.25
    users, items      their numbers                                  × 1.25        × 2

*PSI*, the population stability index: q are the previous shares and p today's, of the rewards where both data sets
have at most ``FEW`` different ones, else of the intervals between the previous deciles. .10 and .25 are the rule of
thumb of credit scoring (usually traced to Lewis 1994, *An Introduction to Credit Scoring*; Yurdakul 2018 studies what
chance alone does to it). They are conventions: about (bins − 1)(1/n + 1/m) is chance, so of a hundred events in ten
bins nothing can be said. A share below ``LEAST_SHARE`` counts as that, so a reward that did not exist before counts as
one that was very rare: 2% of the events are then little drift and 4.2% much.

*The ratios* are stated as factors in either direction. ESS/n is what λ does to the data, and the default grid's steps
are .1 of it: a factor of 1.10 is about a neighbour on the grid, which little drift searches; 1.25 is beyond. It sees
what PSI does not: how far the largest reward is from the others. The numbers of users and items decide how much tilt
the data bear (noise that is averaged, the ln of the catalogue in the theory's floor), and move it slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retilt.algorithms.temperatures import Histogram

Level = Literal["none", "little", "much"]
LEVELS: tuple[Level, ...] = ("none", "little", "much")

PSI = (0.10, 0.25)
FACTORS = {
    "ess": (1.10, 1.25),
    "events_per_user": (1.10, 1.25),
    "users": (1.25, 2.0),
    "items": (1.25, 2.0),
}
FEW = 20
"""Different rewards up to which each has a bin of its own."""
LEAST_SHARE = 1e-4
WORDS = {
    "ess": "ESS/n at the previous λ",
    "events_per_user": "events per user",
    "users": "users",
    "items": "items",
}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """What is compared of a data set; small enough to be kept in a search's result."""

    users: int
    items: int
    events: int
    """Of all users, held-out ones included."""
    rewards: Mapping[str, Any]
    """The manifest's statistics of the training events: ``levels``, or ``quantiles`` and ``events``."""


def compare(previous: Snapshot, now: Snapshot, temperature: float) -> dict[str, Any]:
    """Today's data against those of an earlier search, as JSON.

    Args:
        previous: those on which λ was last *searched*; against last night's, slow drift would never be seen.
        temperature: the previous choice λ, in the unit of the reward.

    Returns:
        ``level`` (none, little, much), ``psi``, ``shifts`` (today ÷ previously − 1 of each ratio), ``reason``.

    Raises:
        InputError: all of one's rewards are equal, so that no λ differs from another.
    """
    today, before = Histogram.of(now.rewards), Histogram.of(previous.rewards)
    psi = _stability(before, today)
    ratios = {
        "ess": today.ess(temperature) / before.ess(temperature),
        "events_per_user": now.events / now.users / (previous.events / previous.users),
        "users": now.users / previous.users,
        "items": now.items / previous.items,
    }
    degrees = {"psi": (psi >= PSI[0]) + (psi > PSI[1])}
    for name, ratio in ratios.items():
        factor, (little, much) = max(ratio, 1 / ratio), FACTORS[name]
        degrees[name] = (factor >= little) + (factor > much)
    worst = max(degrees.values())
    level: Level = LEVELS[worst]
    shifts = {name: ratio - 1 for name, ratio in ratios.items()}
    reason = _reason(psi, shifts, [name for name, degree in degrees.items() if degree == worst > 0])
    return {"level": level, "psi": psi, "shifts": shifts, "reason": f"{reason}: {level if worst else 'no'} drift."}


def _stability(before: Histogram, today: Histogram) -> float:
    """PSI of the rewards."""
    both_L = np.union1d(before.value_L, today.value_L)
    if len(both_L) <= FEW:
        last_B = both_L
    else:  # equal deciles, where rewards are tied, make one bin
        share_L = np.cumsum(before.count_L) / before.count_L.sum()
        last_B = np.unique(before.value_L[np.searchsorted(share_L, np.arange(1, 10) / 10)])
    old_B, new_B = (np.maximum(_shares(each, last_B), LEAST_SHARE) for each in (before, today))
    return float(((new_B - old_B) * np.log(new_B / old_B)).sum())


def _shares(histogram: Histogram, last_B: Floats) -> Floats:
    """Shares of the events up to each of ``last_B``, in the intervals that end there, and above; (B + 1,)."""
    bin_L = np.searchsorted(last_B, histogram.value_L)
    count_B = np.bincount(bin_L, weights=histogram.count_L, minlength=len(last_B) + 1)
    return np.asarray(count_B / count_B.sum())


def _reason(psi: float, shifts: Mapping[str, float], guilty: list[str]) -> str:
    """What drifted, or, where nothing did, everything that was looked at."""
    said = {"psi": f"the rewards' PSI is {psi:.3f}"}
    said |= {name: f"{words} {shifts[name]:+.1%}" for name, words in WORDS.items()}
    found = ", ".join(said[name] for name in guilty or said)
    return found[:1].upper() + found[1:]
