"""Exponential reward-weighted supervised fine-tuning: the KL-regularised optimum, fitted without a reward model.

    L = Σ_p w_p · (−log π(a_p | s_p)) / count,   w = exp((r − r_max) / λ)

Source: arXiv 2603.10279, equation 11 and Algorithm 1, where w = exp(r/λ) and count = |B|. Subtracting the largest
training reward is a constant factor: it leaves the minimiser alone (Observation 3.1) and cannot overflow.
``normalize=none`` is Algorithm 1 to the letter. P: positions of this rank's batch; normalisation: see weights.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from retilt.algorithms.weights import Normalize, WeightTally, require_weight, weighted_nll
from retilt.types import Batch, InputError, Loss, Policy, Statistics

LARGEST_EXPONENT = math.log(torch.finfo(torch.float32).max)
"""ln of the largest float32, about 88.7."""


def exponential_weight(reward_P: Tensor, temperature: float, origin: float) -> Tensor:
    """exp((r − origin) / λ), shape (P,), float32; computed in float64, so that a tiny λ gives 0 and 1, never NaN."""
    return ((reward_P.double() - origin) / temperature).exp().float()


def exp_rsft_loss(
    log_prob_P: Tensor,
    reward_P: Tensor,
    temperature: float,
    reward_max: float,
    normalize: Normalize = "mean",
    mean_weight: float = 1.0,
) -> Loss:
    """The module's equation for one rank's positions; ``reward_P`` in the data set's unit, shape (P,)."""
    origin = 0.0 if normalize == "none" else reward_max
    return weighted_nll(log_prob_P, exponential_weight(reward_P, temperature, origin), normalize, mean_weight)


class ExpRSFT(BaseModel):
    """Hyper-parameters of exponential reward-weighted supervised fine-tuning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: Literal["exp_rsft"] = "exp_rsft"
    temperature: float = Field(default=0.5, gt=0)
    """λ, in the unit of the reward: small follows the reward, large imitates the log."""
    normalize: Normalize = "mean"
    """Divide the weights by their mean over the trained positions, by their batch's sum, or not."""
    allow_low_ess: bool = False
    """Train even where the effective sample size is under 1%."""

    def check(self, statistics: Statistics) -> None:
        """Raise InputError where ``normalize=none`` cannot sum exp(r/λ) over an epoch's positions in float32."""
        largest = statistics.reward_max / self.temperature
        limit = LARGEST_EXPONENT - math.log(max(statistics.positions, 1))
        if self.normalize == "none" and largest > limit:
            raise InputError(
                f"algorithm.normalize=none with algorithm.temperature={self.temperature:g} overflows: exp(r/λ) reaches "
                f"exp({largest:.4g}) at the largest reward {statistics.reward_max:g}, and float32 ends near "
                f"exp({limit:.4g}) for {statistics.positions:,} positions; use algorithm.normalize=mean, or "
                f"algorithm.temperature of at least {statistics.reward_max / limit:.3g}"
            )

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError where λ leaves an effective sample size under 1%, unless it is asked for."""
        require_weight(tally, self.allow_low_ess, f"raise algorithm.temperature={self.temperature:g}")

    def weight(self, reward_P: Tensor, statistics: Statistics) -> Tensor:
        """exp((r − r_max)/λ), or exp(r/λ) with ``normalize=none``; shape (P,)."""
        origin = 0.0 if self.normalize == "none" else statistics.reward_max
        return exponential_weight(reward_P, self.temperature, origin)

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Negative log-likelihood of the logged items, weighted by their exponentiated reward."""
        log_prob_P = policy(batch).log_prob(batch.target_item_P)
        largest, mean = statistics.reward_max, statistics.mean_weight
        return exp_rsft_loss(log_prob_P, batch.target_reward_P, self.temperature, largest, self.normalize, mean)
