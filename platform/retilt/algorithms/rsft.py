"""Reward-weighted supervised fine-tuning: imitate in proportion to the reward.

    L = Σ_p w_p · (−log π(a_p | s_p)) / count,   w = max(0, r − c)

With ``allow_negative`` w = r − c, which with standardised rewards is the published form. Source: Mukherjee et al., as
compared with in arXiv 2603.10279, sections 2 and 6. P: positions of this rank's batch; normalisation: see weights.py.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from retilt.algorithms.weights import Normalize, WeightTally, require_variety, require_weight, weighted_nll
from retilt.types import Batch, InputError, Loss, Policy, Positions, Statistics


def linear_weight(reward_P: Tensor, baseline: float, allow_negative: bool) -> Tensor:
    """w of the module's equation, shape (P,), float32."""
    weight_P = reward_P.double() - baseline
    return (weight_P if allow_negative else weight_P.clamp(min=0.0)).float()


def rsft_loss(
    log_prob_P: Tensor,
    reward_P: Tensor,
    baseline: float = 0.0,
    allow_negative: bool = False,
    normalize: Normalize = "mean",
    mean_weight: float = 1.0,
) -> Loss:
    """The module's equation for one rank's positions; ``reward_P`` in the data set's unit, shape (P,)."""
    return weighted_nll(log_prob_P, linear_weight(reward_P, baseline, allow_negative), normalize, mean_weight)


class RSFT(BaseModel):
    """Hyper-parameters of reward-weighted supervised fine-tuning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: Literal["rsft"] = "rsft"
    baseline: float = 0.0
    """c, in the unit of the reward: rewards up to it get no weight."""
    normalize: Normalize = "mean"
    """Divide the weights by their mean over the trained positions, by their batch's sum, or not."""
    allow_negative: bool = False
    """Keep negative weights, as published for standardised rewards; needs normalize=none."""
    allow_low_ess: bool = False
    """Train even where the effective sample size is under 1%."""

    @model_validator(mode="after")
    def _negative_is_unnormalised(self) -> Self:
        if self.allow_negative and self.normalize != "none":
            raise ValueError(
                f"allow_negative=true needs normalize=none, not {self.normalize}: "
                "the mean of weights of both signs is near 0 and dividing by it is meaningless"
            )
        return self

    def check(self, statistics: Statistics) -> None:
        """Raise InputError on constant rewards, and on negative ones about which nothing was said.

        A baseline other than 0 says which rewards count: those above it.
        """
        require_variety(statistics, self.name)
        lowest = statistics.reward_min
        if lowest < 0.0 and not self.baseline and not self.allow_negative:
            raise InputError(
                f"rsft cannot weight negative rewards (the smallest is {lowest:g}): a negative weight lowers the "
                "probability of the logged item and pushes it to items that nobody has tried; use exp_rsft, or "
                f"algorithm.baseline={lowest:g} (rewards up to it get no weight), or algorithm.allow_negative=true "
                "with algorithm.normalize=none"
            )

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError where the baseline leaves (almost) nothing to train on."""
        # The effective sample size of weights of both signs says nothing: standardised ones have Σw = 0.
        if not (self.allow_negative and float(tally.max_weight) > 0):
            require_weight(tally, self.allow_low_ess, f"lower algorithm.baseline={self.baseline:g}")

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """max(0, r − c), or r − c with ``allow_negative``; shape (P,)."""
        return linear_weight(positions.reward_P, self.baseline, self.allow_negative)

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Negative log-likelihood of the logged items, weighted by their reward."""
        log_prob_P = policy(batch).log_prob(batch.target_item_P)
        mean = statistics.mean_weight
        return rsft_loss(log_prob_P, batch.target_reward_P, self.baseline, self.allow_negative, self.normalize, mean)
