"""Weighted likelihood, and what a weighting does to the data: the shared half of bc, rsft, exp_rsft and top_rated.

    L = Σ_p w_p · (−log π(a_p | s_p)) / count

    normalize = mean    w_p = u_p / ū, count = number of positions
    normalize = batch   w_p = u_p / ū, count = Σ w_p (self-normalised; the sum over all ranks is the step's business)
    normalize = none    w_p = u_p,     count = number of positions (Algorithm 1 of arXiv 2603.10279 to the letter)

u is the algorithm's unnormalised weight, ū its mean over the trained positions. Effective sample size:
ESS/n = (Σu)² / (n Σu²) (Kish 1965). P: positions of this rank's batch; L: reward levels or deciles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retilt import ranks
from retilt.types import InputError, Loss, Statistics

Normalize = Literal["mean", "batch", "none"]

LEAST_ESS = 0.01
"""Share of the trained positions below which an effective sample size is refused."""
MOST_LEVELS = 64
"""Distinct rewards up to which the weight is reported per level, beyond it per decile."""
ROUNDING = 1e-14
"""Relative variance below which a column counts as constant: float64 sums cannot tell it from 0."""


def weighted_nll(log_prob_P: Tensor, weight_P: Tensor, normalize: Normalize, mean_weight: float) -> Loss:
    """The module's equation for one rank's positions; ``weight_P`` is the unnormalised weight u, shape (P,).

    ``batch`` divides by ū too: a constant changes neither total/count nor its gradient, and the logged ``weight`` and
    ``weighted_nll`` stay comparable with those of ``mean``.
    """
    nll_P = -log_prob_P
    weight_P = weight_P.to(nll_P.dtype)
    if normalize != "none":
        weight_P = weight_P / mean_weight
    total = (weight_P * nll_P).sum()
    weight = weight_P.sum()
    positions = torch.full_like(weight, len(nll_P))
    metrics = {"nll": nll_P.detach().sum(), "weighted_nll": total.detach(), "weight": weight}
    return Loss(total, weight if normalize == "batch" else positions, metrics)


@dataclass
class WeightTally:
    """Sums over the trained positions from which the weights' diagnostics follow; nothing is kept per position.

    ``edges_L`` are ascending smallest rewards of each level or decile; tensors live on the device of ``edges_L``.
    """

    edges_L: Tensor
    sums: Tensor = field(init=False)
    """float64: n, Σw, Σw², then Σx, Σx², Σwx of the log popularity, and the same three of the log activity."""
    max_weight: Tensor = field(init=False)
    positions_L: Tensor = field(init=False)
    mass_L: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # float32 like the rewards: 4.1 as float64 is larger than the stored 4.1 and would miss its own level.
        self.edges_L = self.edges_L.float()
        device = self.edges_L.device
        self.sums = torch.zeros(9, dtype=torch.float64, device=device)
        self.max_weight = torch.zeros((), dtype=torch.float64, device=device)
        self.positions_L = torch.zeros(len(self.edges_L), dtype=torch.float64, device=device)
        self.mass_L = torch.zeros_like(self.positions_L)

    @classmethod
    def of(cls, statistics: Mapping[str, Any], device: torch.device | None = None) -> WeightTally:
        """An empty tally for a manifest's ``statistics`` at one cut (``levels``, or 1,001 ``quantiles``)."""
        levels = statistics.get("levels")
        if levels and len(levels) <= MOST_LEVELS:
            edges = {float(value) for value, _ in levels}
        else:
            quantiles = statistics["quantiles"]
            edges = {float(quantiles[i * (len(quantiles) - 1) // 10]) for i in range(10)}
        return cls(torch.tensor(sorted(edges), device=device))

    def add(self, reward_P: Tensor, weight_P: Tensor, popularity_P: Tensor, activity_P: Tensor) -> None:
        """Count positions in: unnormalised weight, training events of the item and of the user, each shape (P,)."""
        if not len(weight_P):
            return
        w_P = weight_P.to(self.sums)
        columns = [torch.ones_like(w_P), w_P, w_P * w_P]
        for count_P in (popularity_P, activity_P):
            x_P = count_P.to(self.sums).clamp(min=1).log()
            columns += [x_P, x_P * x_P, w_P * x_P]
        self.sums += torch.stack([column.sum() for column in columns])
        self.max_weight = torch.maximum(self.max_weight, w_P.abs().max())
        level_P = torch.bucketize(reward_P.to(self.edges_L), self.edges_L[1:], right=True)
        self.positions_L += torch.bincount(level_P, minlength=len(self.edges_L))
        self.mass_L += torch.bincount(level_P, w_P, minlength=len(self.edges_L))

    def sum_over_ranks(self) -> WeightTally:
        """A new tally of every rank's positions, equal on all ranks. Collective; this tally stays as it is."""
        whole = WeightTally(self.edges_L)
        packed = ranks.sum_(torch.cat([self.sums, self.positions_L, self.mass_L]))
        whole.sums, (whole.positions_L, whole.mass_L) = packed[:9], packed[9:].view(2, -1)
        whole.max_weight = ranks.max_(self.max_weight.clone())
        return whole

    @property
    def positions(self) -> int:
        """n, the trained positions."""
        return int(self.sums[0])

    @property
    def mean_weight(self) -> float:
        """ū = Σu / n; 1 without positions."""
        return float(self.sums[1] / self.sums[0]) if self.positions else 1.0

    @property
    def ess_ratio(self) -> float:
        """(Σu)² / (n Σu²), between 1/n and 1; 0 where every weight is 0."""
        return _kish(*self.sums[:3].tolist())

    def report(self) -> dict[str, Any]:
        """JSON-like diagnostics; every name is defined in docs/algorithms.md, an undefined value is None."""
        weight = float(self.sums[1])
        columns = zip(self.edges_L.tolist(), self.positions_L.tolist(), self.mass_L.tolist(), strict=True)
        return {
            "positions": self.positions,
            "mean_weight": self.mean_weight,
            "ess_ratio": self.ess_ratio,
            "max_over_mean_weight": float(self.max_weight) / self.mean_weight if weight else None,
            "correlation_popularity": self._correlation(3),
            "correlation_activity": self._correlation(6),
            "weight_mass": [
                {"reward": edge, "positions": count / max(self.positions, 1), "weight": mass / (weight or 1.0)}
                for edge, count, mass in columns
            ],
        }

    def _correlation(self, first: int) -> float | None:
        """Pearson correlation of the weight with the column whose sums start at ``first``; None if one is constant."""
        n, w, ww = (float(x) for x in self.sums[:3])
        x, xx, wx = (float(value) for value in self.sums[first : first + 3])
        spread_w, spread_x = n * ww - w * w, n * xx - x * x
        if spread_w <= ROUNDING * n * ww or spread_x <= ROUNDING * n * xx:
            return None
        return (n * wx - w * x) / math.sqrt(spread_w * spread_x)


def kish_ratio(weight_L: npt.NDArray[np.float64], count_L: npt.NDArray[np.float64]) -> float:
    """ESS/n of weights of which each occurs ``count`` times, two arrays (L,); 0 where every weight is 0."""
    return _kish(float(count_L.sum()), float(count_L @ weight_L), float(count_L @ weight_L**2))


def _kish(n: float, weight: float, squares: float) -> float:
    return weight * weight / (n * squares) if squares > 0 else 0.0


def require_variety(statistics: Statistics, name: str) -> None:
    """Raise InputError where every training event has the same reward: weights by it have nothing to learn from."""
    if statistics.reward_min == statistics.reward_max:
        raise InputError(
            f"every training event has the reward {statistics.reward_max:g}, so {name} has nothing to learn from it "
            "and would be behaviour cloning; use algorithm=bc, or data with a reward that varies"
        )


def require_weight(tally: WeightTally, allow_low_ess: bool, remedy: str) -> None:
    """Raise InputError where nothing is left to train on: no weight at all, or (unless allowed) ESS/n under 1%."""
    if not tally.positions:
        raise InputError("there is no position to train on: no user has two training events")
    if tally.ess_ratio == 0.0:
        raise InputError(f"every trained position has weight 0; {remedy}")
    if tally.ess_ratio < LEAST_ESS and not allow_low_ess:
        raise InputError(
            f"the weights leave an effective sample size of {tally.ess_ratio:.3%} of {tally.positions:,} positions, "
            f"under {LEAST_ESS:.0%}; {remedy}, or ask for it with algorithm.allow_low_ess=true"
        )
