"""The axis of λ: logarithmic, with places at its ends for the trials that have none.

top_rated is what λ → 0 tends to and BC continued what λ → ∞ does, so they stand at the axis's ends; RSFT, which is no
limit of it, beyond a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retilt.evaluation.plot import PALE
from retilt.evaluation.search.layout import Search, done, part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDS = {"top_rated": "→ 0", "bc": "→ ∞", "rsft": "RSFT"}
SHORT = {"top_rated": "0", "bc": "∞", "rsft": ""}
APART = 0.09
"""Least distance of a place from its neighbour, as a share of the axis between the outer λ."""
ALONE = 2.0
"""The factor to either side where there is one λ only."""


@dataclass(frozen=True)
class Axis:
    """Where each λ and each reference is drawn, on a logarithmic axis."""

    temperatures: Sequence[float]
    """Ascending; not empty."""
    places: dict[str, float]
    """References that have trials → x."""

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest λ that the axis itself shows, midway to the places of the references."""
        half = math.sqrt(self._step())
        return self.temperatures[0] / half, self.temperatures[-1] * half

    def _step(self) -> float:
        return _step(self.temperatures)

    def shows(self, temperature: float) -> bool:
        """Whether a λ lies between the ends."""
        return self.ends[0] <= temperature <= self.ends[1]

    def settle(self, axes: Axes, most: int, short: bool = False) -> None:
        """Scale, limits and about ``most`` ticks; references apart from λ by thin lines, ``short`` of them little."""
        low, high = self.ends
        step = self._step()
        axes.set_xscale("log")
        last = self.temperatures[-1] * step * (step if "rsft" in self.places else 1)
        axes.set_xlim(self.temperatures[0] / step**1.5, last * math.sqrt(step))
        ticks = thinned(self.temperatures, most)
        names = [f"{each:g}" for each in ticks]
        axes.set_xticks(
            [*ticks, *self.places.values()], [*names, *((SHORT if short else ENDS)[each] for each in self.places)]
        )
        axes.minorticks_off()
        for x in (low, high):
            axes.axvline(x, color=PALE, linewidth=0.8, zorder=0.5)


def of(search: Search) -> Axis | None:
    """The axis of a search's trials; None where no trial of a λ ended."""
    found = sorted({each["temperature"] for each in done(search) if each.get("temperature")})
    if not found:
        return None
    step = _step(found)
    places = {"top_rated": found[0] / step, "bc": found[-1] * step, "rsft": found[-1] * step**2}
    return Axis(found, {name: x for name, x in places.items() if done(search, name)})


def floors(search: Search) -> dict[str, float]:
    """The theory's floors of λ by name, smallest first, without undefined ones and those that allow any λ (0)."""
    noise = part(search, "noise")
    found = {"tanh bound": noise.get("floor_tanh"), "eq. 15": noise.get("floor")}
    return {name: value for name, value in found.items() if value}


def _step(temperatures: Sequence[float]) -> float:
    if len(temperatures) == 1:
        return ALONE
    width = math.log(temperatures[-1] / temperatures[0])
    return math.exp(max(width / (len(temperatures) - 1), APART * width))


def thinned(temperatures: Sequence[float], most: int) -> list[float]:
    """Those λ of about ``most`` equal distances; ascending λ."""
    width = math.log(temperatures[-1] / temperatures[0])
    found = [temperatures[0]]
    for each in temperatures[1:]:
        if math.log(each / found[-1]) >= 0.99 * width / most:
            found.append(each)
    return found
