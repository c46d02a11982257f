"""Exponential reward-weighted supervised fine-tuning: the KL-regularised optimum, fitted without a reward model.

    level = position     L = Σ_p w_p · (−log π(a_p | s_p)) / positions,      w_p = exp((x_p − x_max) / λ)
    level = trajectory   L = Σ_τ w_τ · Σ_t −log π(a_t | s_t) / trajectories,  w_τ = exp((R̃_τ − R̃_max) / λ)

Source: arXiv 2603.10279, equation 11 and Algorithm 1, where w = exp(r/λ), and equation 20, where w = exp(R̃(τ)/λ) with
R̃ = (R − mean) / SD of the training trajectories. Subtracting the largest is a constant factor: it leaves the minimiser
alone (Observation 3.1) and cannot overflow; ``normalize=none`` leaves it out and is the paper to the letter. x is the
reward or what transforms.py makes of it. ``context_weight=equal`` divides a position's weight by the mean of exp(x/λ)
over the user's other positions, an estimate of the Z(s) by which equation 11 weights a context.

A trajectory is a user's trained positions. Batches have equally many positions, not trajectories, so each is divided by
its positions ÷ the mean length of a trajectory: divided by their own number, those in a batch of long ones would count
for more than in equation 20. P: positions of this rank's batch; U: users; normalisation: see weights.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from retilt.algorithms import transforms
from retilt.algorithms.survey import Survey
from retilt.algorithms.weights import (
    Normalize,
    WeightTally,
    require_variety,
    require_weight,
    weighted_nll,
)
from retilt.types import Batch, InputError, Loss, Policy, Positions, Statistics

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
    """The module's first equation for one rank's positions; ``reward_P`` is x, shape (P,)."""
    origin = 0.0 if normalize == "none" else reward_max
    return weighted_nll(log_prob_P, exponential_weight(reward_P, temperature, origin), normalize, mean_weight)


class ExpRSFT(BaseModel):
    """Hyper-parameters of exponential reward-weighted supervised fine-tuning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: Literal["exp_rsft"] = "exp_rsft"
    temperature: float = Field(default=0.5, gt=0)
    """λ, in the unit of what is exponentiated: small follows the reward, large imitates the log."""
    normalize: Normalize = "mean"
    """Divide the weights by their mean over the trained positions, by their batch's sum, or not."""
    level: Literal["position", "trajectory"] = "position"
    """Weight each choice by its reward (equation 11), or all of a user's by their standardised return (equation 20)."""
    rewards: transforms.Transform = "raw"
    """What is exponentiated: the reward, in SDs, its rank in 0 … 1, or its difference from the user's mean."""
    returns: Literal["sum", "mean"] = "sum"
    """Under `level=trajectory`: the return is the sum or the mean of the trajectory's rewards."""
    context_weight: Literal["paper", "equal"] = "paper"
    """`equal` divides by the mean of exp(r/λ) over the user's other positions, so that generous users count no more."""
    allow_low_ess: bool = False
    """Train even where the effective sample size is under 1%."""

    @model_validator(mode="after")
    def _a_trajectory_is_one_context(self) -> Self:
        if self.level == "trajectory" and self.rewards == "user_centred":
            raise ValueError(
                "level=trajectory with rewards=user_centred gives every trajectory the return 0; use another rewards="
            )
        if self.level == "trajectory" and self.context_weight == "equal":
            raise ValueError(
                "level=trajectory with context_weight=equal divides each trajectory by others of the same user, "
                "and a user has one; use context_weight=paper"
            )
        return self

    @property
    def by_user(self) -> bool:
        """Whether a weight depends on the user's other positions, so that the largest is known after a pass only."""
        return self.level == "trajectory" or self.rewards == "user_centred" or self.context_weight == "equal"

    def check(self, statistics: Statistics) -> None:
        """Raise InputError on constant rewards, and where ``normalize=none`` cannot sum the weights in float32."""
        require_variety(statistics, self.name)
        if self.by_user:
            largest = statistics.log_weight_max
        else:
            largest = transforms.largest(self.rewards, statistics) / self.temperature
        limit = LARGEST_EXPONENT - math.log(max(statistics.positions, 1))
        if self.normalize == "none" and largest > limit:
            raise InputError(
                f"algorithm.normalize=none with algorithm.temperature={self.temperature:g} overflows: the largest "
                f"weight is exp({largest:.4g}), and float32 ends near exp({limit:.4g}) for {statistics.positions:,} "
                "positions; use algorithm.normalize=mean, or algorithm.temperature of at least "
                f"{largest * self.temperature / limit:.3g}"
            )

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError where λ leaves an effective sample size under 1%, unless it is asked for."""
        require_weight(tally, self.allow_low_ess, f"raise algorithm.temperature={self.temperature:g}")

    def survey(self, positions: Positions, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """What a pass before the first step counts, where ``by_user``: two tensors for ``Survey.add``.

        Of trajectories the return and the length, (U,) each; of positions ln w and 1, (P,) each.
        """
        if self.level == "trajectory":
            return self._returns(positions, statistics), positions.user_P.bincount()
        log_P = self._log_weight(positions, statistics)
        return log_P, torch.ones_like(log_P)

    def surveyed(self, whole: Survey, statistics: Statistics) -> Statistics:
        """The statistics with what the pass found. Raises InputError where all trajectories have the same return."""
        largest = float(whole.largest)
        if self.level == "position":
            return replace(statistics, log_weight_max=largest)
        mean, sd = whole.moments
        if sd <= 1e-7 * abs(mean):
            raise InputError(
                f"every trajectory has the return {mean:g}, so algorithm.level=trajectory has nothing to learn from; "
                "use algorithm.level=position or another algorithm.returns"
            )
        largest = (largest - mean) / sd / self.temperature
        found = replace(statistics, trajectories=int(whole.sums[0]), return_mean=mean, return_sd=sd)
        return replace(found, log_weight_max=largest)

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """w of the module's equations, without the largest subtracted under ``normalize=none``; shape (P,)."""
        if self.by_user:
            largest = 0.0 if self.normalize == "none" else statistics.log_weight_max
            return (self._log_weight(positions, statistics) - largest).exp().float()
        origin = 0.0 if self.normalize == "none" else transforms.largest(self.rewards, statistics)
        x_P = transforms.transformed(positions, self.rewards, statistics)
        return exponential_weight(x_P, self.temperature, origin)

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Negative log-likelihood of the logged items, weighted by their exponentiated reward or return."""
        log_prob_P, mean = policy(batch).log_prob(batch.target_item_P), statistics.mean_weight
        if not self.by_user:
            x_P = transforms.transformed(batch.positions, self.rewards, statistics)
            largest = transforms.largest(self.rewards, statistics)
            return exp_rsft_loss(log_prob_P, x_P, self.temperature, largest, self.normalize, mean)
        loss = weighted_nll(log_prob_P, self.weight(batch.positions, statistics), self.normalize, mean)
        if self.level == "position":
            return loss
        return replace(loss, count=loss.count * (statistics.trajectories / statistics.positions))

    def _returns(self, positions: Positions, statistics: Statistics) -> Tensor:
        x_P = transforms.transformed(positions, self.rewards, statistics)
        return (transforms.user_sums if self.returns == "sum" else transforms.user_means)(x_P, positions.user_P)

    def _log_weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """ln w before the largest is subtracted, shape (P,), float64."""
        user_P = positions.user_P
        if self.level == "trajectory":
            standardised_U = (self._returns(positions, statistics) - statistics.return_mean) / statistics.return_sd
            return (standardised_U / self.temperature)[user_P]
        log_P = transforms.transformed(positions, self.rewards, statistics) / self.temperature
        if self.context_weight == "equal":
            log_P = log_P - transforms.log_mean_of_others(log_P, user_P)
        return log_P
