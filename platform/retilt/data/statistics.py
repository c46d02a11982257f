"""Statistics of rewards that can be summed over shards: range, mean, standard deviation, levels, quantiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEVELS = 1024
"""Most distinct rewards that are stored with their counts."""
EXACT = 1 << 16
"""Up to this many distinct rewards quantiles are exact; above, rewards are rounded to 12 significant bits (0.03%)."""
QUANTILES = 1001


@dataclass(frozen=True)
class Rewards:
    """Distinct rewards in ascending order with their counts, and exact moments; addition merges two sets of events."""

    value: npt.NDArray[np.float32]
    count: npt.NDArray[np.int64]
    rounded: bool
    minimum: float
    maximum: float
    mean: float
    deviations: float
    """Sum of squared differences from the mean."""

    @property
    def events(self) -> int:
        """Number of events."""
        return int(self.count.sum())

    @classmethod
    def of(cls, reward: npt.NDArray[np.float32]) -> Rewards:
        """Statistics of finite rewards, shape (E,)."""
        value, count = np.unique(reward, return_counts=True)
        wide = value.astype(np.float64)
        n = max(1, len(reward))
        mean = float((wide * count).sum() / n)
        deviations = float((np.square(wide - mean) * count).sum())
        low, high = (float(value[0]), float(value[-1])) if len(value) else (np.inf, -np.inf)
        return cls(value, count.astype(np.int64), False, low, high, mean, deviations)._limited()

    def _limited(self) -> Rewards:
        if not self.rounded and len(self.value) <= EXACT:
            return self
        rounded, inverse = np.unique(_rounded(self.value), return_inverse=True)
        count = np.bincount(inverse, weights=self.count, minlength=len(rounded)).astype(np.int64)
        return Rewards(rounded, count, True, self.minimum, self.maximum, self.mean, self.deviations)

    def __add__(self, other: Rewards) -> Rewards:
        value, inverse = np.unique(np.concatenate([self.value, other.value]), return_inverse=True)
        weights = np.concatenate([self.count, other.count])
        count = np.bincount(inverse, weights=weights, minlength=len(value)).astype(np.int64)
        a, b = self.events, other.events
        n = max(1, a + b)
        difference = other.mean - self.mean
        # Chan, Golub and LeVeque (1979): the parallel form of the variance.
        return Rewards(
            value,
            count,
            self.rounded or other.rounded,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.mean + difference * b / n if b else self.mean,
            self.deviations + other.deviations + difference**2 * a * b / n,
        )._limited()

    def summary(self) -> dict[str, Any]:
        """The ``statistics`` entry of a manifest; quantile i/1000 is the smallest reward that so many events reach."""
        n = self.events
        assert n > 0, "every kept user has a training event"
        wanted = np.ceil(np.linspace(0, 1, QUANTILES) * n).clip(1, n)
        quantiles = self.value[np.searchsorted(np.cumsum(self.count), wanted)].astype(np.float64)
        levels = None
        if not self.rounded and len(self.value) <= LEVELS:
            levels = [[float(v), int(c)] for v, c in zip(self.value, self.count, strict=True)]
        return {
            "events": n,
            "reward_min": self.minimum,
            "reward_max": self.maximum,
            "reward_mean": self.mean,
            "reward_sd": float(np.sqrt(self.deviations / n)),
            "levels": levels,
            "quantiles": [min(max(q, self.minimum), self.maximum) for q in quantiles.tolist()],
        }


def _rounded(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mantissa, exponent = np.frexp(value.astype(np.float64))
    return np.ldexp(np.round(mantissa * 4096) / 4096, exponent).astype(np.float32)
