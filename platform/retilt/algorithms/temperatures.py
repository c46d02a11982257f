"""The grid of λ for a reward: where its points lie, which of them train alike, which are refused.

Everything follows from the histogram of the training rewards: a manifest's ``statistics`` at one cut. λ is in the unit
of the reward, and only λ ÷ unit matters: rewards in another unit give the same grid in that unit.

An event's share of the training is q_λ = exp(r/λ) / Σ exp(r/λ) (``normalize=mean`` of exp_rsft.py), and its effective
sample size is ESS/n = 1 / (n Σ q_λ²), which rises with λ from the share of the largest reward (top_rated) to 1 (BC).
All training events count here, a run's report counts those in the model's window. L: distinct rewards, or strata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retilt.algorithms.weights import kish_ratio
from retilt.types import InputError

Floats = npt.NDArray[np.float64]

SAME = 0.01
"""Two λ train alike where the total variation between their shares is below this; see ``merge``."""
ROUNDING = 0.01
"""What two digits of λ may change of ESS/n."""
MARGIN = 0.03
"""Where the share p of the largest reward ends the grid, it begins at p + 3% of 1 − p."""
LEAST_ROOM = 0.25
"""Where p is large, the grid ends at an ESS/n of at least 1 − 25% of 1 − p."""
WIDEST, HALVINGS = 40.0, 60
"""λ is sought between e^−40 and e^40 ranges of the reward, and 60 halvings of that leave 10⁻¹⁶."""
TOLD_APART = 1e-9
"""How far above the least effective sample size, as a share of it, one can be told from it."""
TAIL = 64
"""Points that stand for the events between the last two quantiles."""


@dataclass(frozen=True)
class Histogram:
    """Rewards and how many training events have each; use ``Histogram.of``."""

    value_L: Floats
    """Ascending, in the reward's unit; at least two are different."""
    count_L: Floats
    """Events of each, above 0; not whole numbers where they follow from quantiles."""

    @classmethod
    def of(cls, rewards: Mapping[str, Any]) -> Histogram:
        """Of a manifest's statistics at one cut: exact from its ``levels``, else by its ``quantiles`` and ``events``.

        Raises:
            InputError: every training event has the same reward, so that no λ differs from another.
        """
        if levels := rewards.get("levels"):
            value_L, count_L = np.array(sorted(each for each in levels if each[1] > 0), dtype=np.float64).T
        else:
            value_L, count_L = _between(np.array(rewards["quantiles"], dtype=np.float64), float(rewards["events"]))
        if value_L[0] == value_L[-1]:
            raise InputError(
                f"every training event has the reward {value_L[0]:g}, so every λ trains like BC and there is nothing "
                "to search; use algorithm=bc, or data with a reward that varies"
            )
        return cls(value_L, count_L)

    @property
    def levels(self) -> list[list[float]]:
        """[[reward, events], …] as a manifest has them."""
        return np.stack([self.value_L, self.count_L], axis=1).tolist()  # type: ignore[no-any-return]

    @property
    def width(self) -> float:
        """Range of the rewards, in their unit."""
        return float(self.value_L[-1] - self.value_L[0])

    @property
    def least_ess(self) -> float:
        """Share of the largest reward, which ESS/n approaches as λ → 0."""
        return float(self.count_L[self.value_L == self.value_L[-1]].sum() / self.count_L.sum())

    def weight(self, temperature: float) -> Floats:
        """exp((r − r_max) / λ) of each reward, (L,)."""
        with np.errstate(over="ignore"):  # a quotient below −1e308 is a weight of 0
            return np.asarray(np.exp((self.value_L - self.value_L[-1]) / temperature))

    def ess(self, temperature: float) -> float:
        """ESS/n that λ leaves."""
        return kish_ratio(self.weight(temperature), self.count_L)

    def temperature(self, ess_ratio: float) -> float:
        """λ that leaves the effective sample size ``ess_ratio`` (ESS/n), which rises with λ from ``least_ess`` to 1.

        Raises:
            InputError: no λ leaves so much or so little; says what can be reached.
        """
        if not self.least_ess < ess_ratio < 1:
            raise InputError(
                f"no temperature leaves an effective sample size of {ess_ratio:g}; it is above {self.least_ess:.4g} "
                "and below 1"
            )
        return self._sought(ess_ratio, self.ess)

    def baseline_ess(self, baseline: float) -> float:
        """ESS/n that the weights max(0, r − c) of rsft leave; ``baseline`` is c."""
        return kish_ratio(np.maximum(self.value_L - baseline, 0.0), self.count_L)

    def baseline(self, ess_ratio: float) -> float:
        """c of rsft that leaves ``ess_ratio``, which falls from 1 to ``least_ess`` as c grows; negative ones too.

        Of all c that leave the least size, the smallest: the second largest reward.
        """
        largest, sought = float(self.value_L[-1]), max(ess_ratio, self.least_ess * (1 + TOLD_APART))
        return largest - self._sought(sought, lambda below: self.baseline_ess(largest - below))

    def _sought(self, ess_ratio: float, ess: Callable[[float], float]) -> float:
        """Where ``ess``, which rises, reaches ``ess_ratio``: by halving, on a logarithmic scale."""
        whole, low, high = self.width, -WIDEST, WIDEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if ess(whole * math.exp(middle)) < ess_ratio:
                low = middle
            else:
                high = middle
        return whole * math.exp((low + high) / 2)

    def distance(self, temperature: float, other: float) -> float:
        """Total variation between the shares of two λ, Σ |q_λ − q_λ'| / 2 over all events: 0 … 1."""
        mass_L, other_L = (self.count_L * self.weight(each) for each in (temperature, other))
        return float(np.abs(mass_L / mass_L.sum() - other_L / other_L.sum()).sum() / 2)


@dataclass(frozen=True)
class Proposal:
    """λ that nobody had to name."""

    temperatures: list[float]
    """Ascending, all different; fewer than were asked for only where rounding makes two equal."""
    note: str | None
    """A sentence that says so where the histogram does not reach as far down as was asked."""


def auto(rewards: Mapping[str, Any], number: int, low: float = 0.25, high: float = 0.95) -> Proposal:
    """λ whose ESS/n are equally spaced from ``low`` to ``high``, both included.

    Equal steps of ESS/n, because it says what a λ does to the data, whatever the reward's unit and histogram; equal
    steps of λ or ln λ put most points where nothing changes. No λ leaves less than p, the share of the largest reward:
    where ``low`` is not above it by ``MARGIN`` of what lies above p, the grid begins there, just above top_rated.

    λ are rounded to two digits where that moves ESS/n by less than ``ROUNDING``, else to three.

    Args:
        rewards: a manifest's statistics at one cut, in any unit.
        number: how many λ, at least 2.
        low, high: ESS/n, 0 < low < high < 1.

    Raises:
        InputError: all rewards are equal, or ``number`` is below 2.
    """
    if number < 2:
        raise InputError(f"{number} temperatures make no grid; ask for at least 2, or give the λ yourself")
    histogram = Histogram.of(rewards)
    least = histogram.least_ess
    start = max(low, least + MARGIN * (1 - least))
    end = high if start == low else max(high, 1 - LEAST_ROOM * (1 - least))
    exact = [histogram.temperature(each) for each in np.linspace(start, end, number).tolist()]
    found = [_rounded(each, histogram) for each in exact]
    note = None
    if start > low:
        note = (
            f"The largest reward has {least:.1%} of the training events, and no λ leaves a smaller effective sample "
            f"size, so the grid begins at {start:.1%} instead of {low:.1%}."
        )
    return Proposal(list(dict.fromkeys(found)), note)


def merge(temperatures: Sequence[float], rewards: Mapping[str, Any]) -> tuple[list[float], list[dict[str, float]]]:
    """The λ worth a trial each, ascending, and what was merged into what.

    Criterion: the total variation between the two λ' shares of the events is below ``SAME`` = 1%. It is what the
    training can notice: two losses Σ q_i ℓ_i differ by at most that times the range of ℓ, and so does each component of
    their gradients. The difference of ESS/n is no such bound: near BC it goes with 1/λ² and calls λ alike that
    disagree about 4% of the weight.

    From the largest λ down, each is compared with the last one *kept*, so that a long row of neighbours does not
    collapse into one; of two that train alike the larger stays, being nearer to what was logged.

    Args:
        temperatures: checked ones (``check``), in any order; given by hand or by ``auto``.
        rewards: a manifest's statistics at one cut.

    Returns:
        λ that are kept, and for each of the others {"temperature", "kept", "ess", "kept_ess"}, from the largest down.

    Raises:
        InputError: all rewards are equal.
    """
    histogram = Histogram.of(rewards)
    kept: list[float] = []
    merged: list[dict[str, float]] = []
    for each in sorted(temperatures, reverse=True):
        if not kept or histogram.distance(each, kept[-1]) >= SAME:
            kept.append(each)
            continue
        ess, kept_ess = histogram.ess(each), histogram.ess(kept[-1])
        merged.append({"temperature": each, "kept": kept[-1], "ess": ess, "kept_ess": kept_ess})
    return kept[::-1], merged


def check(temperatures: Sequence[float]) -> None:
    """Raise InputError where λ given by hand are no grid: none, one not above 0 or not finite, one twice."""
    if not temperatures:
        raise InputError("the list of temperatures is empty; give at least one λ, or temperatures=auto")
    for each in temperatures:
        if not (each > 0 and math.isfinite(each)):
            raise InputError(f"{each:g} is no temperature; λ is a finite number above 0, in the unit of the reward")
    twice = [each for place, each in enumerate(temperatures) if each in temperatures[:place]]
    if twice:
        raise InputError(f"the temperature {twice[0]:g} is listed twice; give each λ once")


def points(temperatures: Sequence[float], rewards: Mapping[str, Any]) -> list[dict[str, float]]:
    """What each λ does to the data, in their order: [{"temperature", "ess"}, …], ess being ESS/n.

    Raises:
        InputError: all rewards are equal.
    """
    histogram = Histogram.of(rewards)
    return [{"temperature": each, "ess": histogram.ess(each)} for each in temperatures]


def _rounded(temperature: float, histogram: Histogram) -> float:
    two, three = (float(f"{temperature:.{digits}g}") for digits in (2, 3))
    return two if abs(histogram.ess(two) - histogram.ess(temperature)) < ROUNDING else three


def _between(quantile_Q: Floats, events: float) -> tuple[Floats, Floats]:
    """Ascending rewards and their events (L,) from quantiles at equal steps: the middle of each stratum.

    Where the tail is long, exp(r/λ) lives between the last two quantiles, which hold a thousandth of the events and the
    largest of all. Counted as that thousandth the largest would decide everything: a million exponential rewards of
    mean 1 leave ESS/n = .80 at λ = 3.2, and 1,001 equal quantiles say .24. So the largest counts once, and the others
    lie as the excesses of an exponential tail whose largest of N it is (Pickands 1975: excesses over a high threshold
    are generalised Pareto; this is its shape 0). That says .79.
    """
    each = events / (len(quantile_Q) - 1)
    middle_L = (quantile_Q[:-2] + quantile_Q[1:-1]) / 2
    low, high = quantile_Q[-2:]
    if each <= 1 or low == high:
        return np.append(middle_L, high), np.full(len(quantile_Q) - 1, each)
    place_T = (np.arange(TAIL) + 0.5) / TAIL * (1 - 1 / each)
    tail_L = low + (high - low) * -np.log1p(-place_T) / math.log(each)
    count_L = np.concatenate([np.full(len(middle_L), each), np.full(TAIL, (each - 1) / TAIL), [1.0]])
    return np.concatenate([middle_L, tail_L, [high]]), count_L
