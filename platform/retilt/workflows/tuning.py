"""Tuning by synchronous halving: every method gets the same number of trials, on the same rungs, judged on validation.

All trials run for the first rung's epochs, the best third of them go on to the second, the best of those to the last
(Jamieson & Talwalkar 2016). A trial that goes on continues its run. Waiting for a whole rung makes the choice a
function of the trials' results alone, whatever the order in which they end and however often they are interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retilt.algorithms.temperatures import Histogram

LAMBDAS = (0.03, 1.0)
"""Ends of the grid of λ as shares of the rewards' range: from top-rated but in name to nearly BC on 1 to 5 stars."""
SIZES = (0.25, 0.95)
"""The same ends of continuous rewards, as shares of the way from the least effective sample size that any λ leaves to
all of it: the range of a long tail only says how large its largest reward happens to be."""
ROOM = 0.05
"""ESS/n that the grid of c needs between its ends."""
FINEST = 40.0
"""Part of the rewards' range that c is rounded to, or up to a tenth of it, so that a folder has a readable name."""
MORE_DIGITS = 10
"""Digits that c has at most beside those, where rounding would make two of them one."""
RATES = (0.03, 3.0)
"""Ends of the grid of learning rates where only they are tuned, as factors of the default ones."""
PAIR = (1.0, 0.3)
"""The factors that are tried with each λ (each c of rsft): post-training may want smaller steps than pretraining."""


@dataclass(frozen=True)
class Point:
    """What a trial is: an objective's settings and the factor on the default learning rates."""

    algorithm: Mapping[str, Any]
    factor: float

    @property
    def name(self) -> str:
        """Its folder: what differs from trial to trial, such as ``temperature-0.5-rate-0.3``."""
        settings = [
            f"{key}-{value:.12g}" if isinstance(value, float) else f"{key}-{value}"
            for key, value in self.algorithm.items()
            if key != "name"
        ]
        return "-".join([*settings, f"rate-{self.factor:g}"])


@dataclass(frozen=True)
class Chosen:
    """What validation chose for an arm."""

    point: Point
    epochs: int
    trials: int
    """Out of so many."""


@dataclass(frozen=True)
class Rung:
    """``trials`` trials that have ``epochs`` epochs at its end."""

    epochs: int
    trials: int


def rungs(trials: int, epochs: Sequence[int]) -> list[Rung]:
    """All trials, a third of them (rounded up), …, and one alone on the last of three or more rungs.

    >>> [(each.trials, each.epochs) for each in rungs(10, (2, 5, 10))]
    [(10, 2), (4, 5), (1, 10)]
    """
    found, alive = [], trials
    for number, each in enumerate(epochs):
        if number:
            alive = 1 if number == len(epochs) - 1 else -(-alive // 3)
        found.append(Rung(each, alive))
    return found


def grid(method: str, trials: int, rewards: Mapping[str, Any]) -> list[Point]:
    """The ``trials`` points that a method is tuned over; ``rewards`` are the statistics of the training rewards."""
    half = trials // 2
    if method in ("exp_rsft", "ppo", "dpo"):
        return [
            Point({"name": method, "temperature": each}, factor) for each in lambdas(half, rewards) for factor in PAIR
        ]
    if method == "rsft":
        return [
            Point({"name": method, "baseline": each}, factor) for each in baselines(half, rewards) for factor in PAIR
        ]
    if method == "top_rated":
        # The largest reward alone means nothing where rewards are continuous.
        quantiles: list[dict[str, float]] = (
            [{}, {"quantile": 0.5}] if rewards.get("levels") else [{"quantile": 0.9}, {"quantile": 0.5}]
        )
        return [Point({"name": method, **each}, factor) for each in quantiles for factor in rates(half, high=1.0)]
    assert method == "bc_continued"
    return [Point({"name": "bc"}, factor) for factor in rates(trials)]


def lambdas(number: int, rewards: Mapping[str, Any]) -> list[float]:
    """The grid of λ, in the unit of the rewards, equally spaced on a logarithmic scale."""
    if rewards.get("levels"):
        low, high = _ends(rewards)
        return [_rounded((high - low) * each) for each in np.geomspace(*LAMBDAS, number)]
    there = Histogram.of(rewards)
    low, high = (there.temperature(there.least_ess + (1 - there.least_ess) * each) for each in SIZES)
    return [_rounded(each) for each in np.geomspace(low, high, number)]


def baselines(number: int, rewards: Mapping[str, Any]) -> list[float]:
    """The grid of c of rsft: from 0 (the least reward, if negative) to as small an effective sample size as λ leaves.

    Equal steps of ESS/n between them. A range of its own would let one method follow the rewards further than the
    other, and strength would pass for shape. Where 0 leaves as little as that already (rewards of 0 and 1, long tails),
    the grid goes the other way, to as large a size as λ leaves.
    """
    there = Histogram.of(rewards)
    least, most = (there.ess(each) for each in lambdas(2, rewards))
    first = min(0.0, _ends(rewards)[0])
    own = there.baseline_ess(first)
    sizes = np.linspace(own, least if own - least > ROOM else most, number)[1:]
    exact, found = [there.baseline(float(size)) for size in sizes], [first]
    fewest = math.ceil(-math.log10(there.width / FINEST) - 1e-9)
    for digits in range(fewest, fewest + MORE_DIGITS):
        found = [first, *(round(each, digits) for each in exact)]
        trained = {there.baseline_ess(each) for each in found}
        # Each must train otherwise and leave some weight, and rsft takes a c of 0 for none given.
        if len(trained) == number and 0.0 not in trained and 0.0 not in found[1:]:
            break
    return found


def rates(number: int, high: float = RATES[1]) -> list[float]:
    """A grid of factors on the learning rates, equally spaced on a logarithmic scale."""
    return [_rounded(each) for each in np.geomspace(RATES[0], high, number)]


def best(scores: Mapping[str, float], number: int) -> list[str]:
    """The names of the ``number`` highest scores; of equal ones those that come first."""
    return sorted(scores, key=lambda name: -scores[name])[:number]


def survivors(
    points: Sequence[Point], steps: Sequence[Rung], score: Callable[[Point, int], float | None]
) -> list[tuple[Point, int]]:
    """Every (point, epochs) whose turn has come, rung after rung, as far as ``score`` knows the rungs before.

    ``score``: the best value within so many epochs; None where it is not known yet, −∞ of a trial that failed.
    """
    found: list[tuple[Point, int]] = []
    alive = list(points)
    for number, rung in enumerate(steps):
        if number:
            known = {each.name: score(each, steps[number - 1].epochs) for each in alive}
            values = {name: value for name, value in known.items() if value is not None}
            if len(values) < len(known):
                return found
            kept = best({name: value for name, value in values.items() if value > float("-inf")}, rung.trials)
            alive = [each for each in alive if each.name in kept]
        found += [(each, rung.epochs) for each in alive]
    return found


def _ends(rewards: Mapping[str, Any]) -> tuple[float, float]:
    if levels := rewards.get("levels"):
        values = [float(value) for value, _ in levels]
        return min(values), max(values)
    return float(rewards["quantiles"][0]), float(rewards["quantiles"][-1])


def _rounded(value: float) -> float:
    """Two digits, so that a folder has a readable name and a table a short cell."""
    return float(f"{value:.2g}")
