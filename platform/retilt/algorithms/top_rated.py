"""Imitation of the top-rated choices only: the λ → 0 limit of exp_rsft, and the baseline that any λ must beat.

    L = Σ_p w_p · (−log π(a_p | s_p)) / count,   w = 1[r ≥ r_top]

r_top is the largest training reward, or a stated quantile where rewards are continuous. Source: the limit of equation
11 of arXiv 2603.10279; its population optimum is π_β(a|s) · P(r ≥ r_top | s, a). P: positions of this rank's batch;
normalisation: see weights.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from retilt.algorithms.weights import Normalize, WeightTally, require_variety, require_weight, weighted_nll
from retilt.types import Batch, InputError, Loss, Policy, Positions, Statistics


def top_weight(reward_P: Tensor, threshold: float) -> Tensor:
    """1 where the reward reaches the threshold, else 0; shape (P,), float32."""
    return (reward_P >= threshold).float()


def top_rated_loss(
    log_prob_P: Tensor, reward_P: Tensor, threshold: float, normalize: Normalize = "mean", mean_weight: float = 1.0
) -> Loss:
    """The module's equation for one rank's positions; ``reward_P`` in the data set's unit, shape (P,)."""
    return weighted_nll(log_prob_P, top_weight(reward_P, threshold), normalize, mean_weight)


def quantile_of_levels(levels: Sequence[tuple[float, int]], quantile: float) -> float:
    """Smallest level whose cumulative share of events is at least ``quantile``; ``levels`` are (reward, events)."""
    ascending = sorted(levels)
    needed = quantile * sum(count for _, count in ascending)
    reached = 0
    for value, count in ascending:
        reached += count
        if reached >= needed:
            return float(value)
    return float(ascending[-1][0])


class TopRated(BaseModel):
    """Hyper-parameters of imitating the top-rated choices."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: Literal["top_rated"] = "top_rated"
    quantile: float | None = Field(default=None, gt=0, lt=1)
    """Rewards from this quantile of the training rewards on are top rated; null means the largest reward only."""
    normalize: Normalize = "mean"
    """Divide the weights by their mean over the trained positions, by their batch's sum, or not."""
    allow_low_ess: bool = False
    """Train even where fewer than 1% of the positions are top rated."""

    def threshold(self, statistics: Mapping[str, Any]) -> float:
        """r_top from a manifest's ``statistics`` at one cut; InputError for continuous rewards without a quantile."""
        levels = statistics.get("levels")
        if self.quantile is None:
            if not levels:
                raise InputError(
                    "top_rated: the rewards are continuous, so their largest is a single event; "
                    "say which are top rated, for example algorithm.quantile=0.8"
                )
            return float(max(value for value, _ in levels))
        if levels:
            return quantile_of_levels([(float(value), int(count)) for value, count in levels], self.quantile)
        quantiles = statistics["quantiles"]
        place = self.quantile * (len(quantiles) - 1)
        below = int(place)
        above = min(below + 1, len(quantiles) - 1)
        return float(quantiles[below] + (place - below) * (quantiles[above] - quantiles[below]))

    def check(self, statistics: Statistics) -> None:
        """Raise InputError on constant rewards; whether enough are top rated is known after the weights' pass."""
        require_variety(statistics, self.name)

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError where (almost) no trained position is top rated."""
        require_weight(tally, self.allow_low_ess, "lower algorithm.quantile so that more positions are top rated")

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """1[r ≥ ``statistics.threshold``], shape (P,)."""
        return top_weight(positions.reward_P, statistics.threshold)

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Negative log-likelihood of the top-rated logged items."""
        log_prob_P = policy(batch).log_prob(batch.target_item_P)
        mean = statistics.mean_weight
        return top_rated_loss(log_prob_P, batch.target_reward_P, statistics.threshold, self.normalize, mean)
