"""Proximal policy optimisation against a reward model, with the exact divergence from where it started.

    L = Σ_p [ −u · mean_k min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) / SD + (λ/SD) · KL(π ‖ π_ref) + c · mean_k (V − r̂)² / MS ]
        / number of positions,   ρ = π(a | s) / π_old(a | s),   A = r̂ − baseline − mean

which is E[r̂] − λ · KL of equation 3 of arXiv 2603.10279 (its optimum: π_ref · exp(r̂/λ) / Z), divided by SD. Mean and SD
are those of r̂ − baseline over the draws of the *global* batch: whitening. The divergence is divided by SD too, so λ
keeps its unit, and the value error by its own mean square MS before the first pass: no term depends on the reward's
unit, and a V(s) that is far off at first does not outweigh the rest. u is the probability that π_old gave to all items
outside the history, of which alone draws are made: so u · mean_k stands for Σ π(a | s) A over them, an item of the
history counts as one of advantage 0, and λ keeps its meaning beside a divergence that is the whole catalogue's.

    baseline = value   V(s), the policy's value head before the first pass
    baseline = group   mean of the context's other draws

The group's mean leaves out the draw itself: with it, advantages would be (K − 1)/K as large and λ in effect K/(K − 1)
times larger. Sources: Schulman et al. 2017 (equation 7, the clipped surrogate); Kool et al. 2019 (leave-one-out
baseline). A bandit has no later rewards, so there is no discount and no λ-return. P: positions of this rank's batch,
K: draws of a position. History: see online.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from retilt import ranks
from retilt.algorithms.online import Online, distribution, state_of
from retilt.types import Batch, Explored, InputError, Loss, Policy, Statistics


@dataclass(frozen=True)
class Advantage:
    """What the draws of a global batch were worth, whitened."""

    whitened_PK: Tensor
    """(r̂ − baseline − mean) / SD."""
    sd: Tensor
    """Scalar, in the unit of the reward; 1 where all advantages are equal, and so zero."""
    square: Tensor
    """Scalar, mean of (r̂ − baseline)²; 1 where all are zero."""
    explained: Tensor
    """Scalar: 1 − Var(r̂ − baseline) / Var(r̂), 0 where r̂ does not vary."""


def advantage(reward_PK: Tensor, baseline_PK: Tensor) -> Advantage:
    """Whitened over the draws of all ranks. Collective."""
    raw_PK, whole_PK = (reward_PK - baseline_PK).double(), reward_PK.double()
    sums = [raw_PK.sum(), raw_PK.square().sum(), whole_PK.sum(), whole_PK.square().sum()]
    found = ranks.sum_(torch.stack([raw_PK.new_tensor(float(raw_PK.numel())), *sums]))
    mean, square, reward_mean, reward_square = found[1:] / found[0].clamp(min=1)
    variance, reward_variance = square - mean**2, reward_square - reward_mean**2
    # A constant may leave rounding of float64's 1e-16 of its square.
    varies = variance > 1e-12 * square
    sd = torch.where(varies, variance, 1.0).sqrt()
    explained = torch.where(reward_variance > 1e-12 * reward_square, 1 - variance / reward_variance, 0.0)
    whitened_PK = (raw_PK - mean) / sd * varies
    square = torch.where(square > 0, square, 1.0)
    return Advantage(whitened_PK.to(reward_PK), sd.to(reward_PK), square.to(reward_PK), explained)


def others_mean(reward_PK: Tensor) -> Tensor:
    """For each draw the mean reward of the context's other draws, (P, K); K ≥ 2."""
    return (reward_PK.sum(1, keepdim=True) - reward_PK) / (reward_PK.shape[1] - 1)


def ppo_loss(
    log_prob_PK: Tensor,
    log_old_PK: Tensor,
    worth: Advantage,
    unseen_P: Tensor,
    kl_P: Tensor,
    temperature: float,
    clip: float,
) -> Loss:
    """The module's equation without its value term, for one rank's positions; ``temperature`` in the reward's unit."""
    log_ratio_PK = log_prob_PK - log_old_PK
    ratio_PK = log_ratio_PK.exp()
    surrogate_PK = torch.minimum(ratio_PK * worth.whitened_PK, ratio_PK.clamp(1 - clip, 1 + clip) * worth.whitened_PK)
    total = (temperature / worth.sd) * kl_P.sum() - (unseen_P * surrogate_PK.mean(1)).sum()
    with torch.no_grad():
        metrics = {
            "mean_ratio": ratio_PK,
            "clip_fraction": ((ratio_PK - 1).abs() > clip).to(ratio_PK),
            "approximate_kl": ratio_PK - 1 - log_ratio_PK,
        }
        count = torch.full_like(total, len(kl_P))
        return Loss(total, count, {name: each_PK.mean(1).sum() for name, each_PK in metrics.items()})


class PPO(Online):
    """Hyper-parameters of proximal policy optimisation."""

    name: Literal["ppo"] = "ppo"
    baseline: Literal["value", "group"] = "value"
    """What an advantage is measured from: a value head's estimate, or the mean of the position's other draws."""
    draws: int = Field(default=4, ge=1)
    """Items drawn at each position."""
    passes: int = Field(default=4, ge=1)
    """Updates on each batch of draws."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """ε, how far from 1 a ratio is rewarded for moving within a batch."""
    value_coefficient: float = Field(default=0.1, ge=0)
    """c, of the value head's squared error; without effect on `baseline=group`."""

    @model_validator(mode="after")
    def _a_group_has_others(self) -> PPO:
        if self.baseline == "group" and self.draws < 2:
            raise InputError(
                "baseline = 'group' needs draws of at least 2, as each is measured from the others; "
                "raise draws or use baseline=value"
            )
        return self

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Clipped surrogate, divergence and value error; ``batch`` is an ``Explored``. Collective."""
        assert isinstance(batch, Explored)
        now = distribution(policy, batch)
        reward_PK = batch.reward_PK
        if self.baseline == "group":
            baseline_PK = others_mean(reward_PK)
        else:
            assert batch.value_P is not None
            baseline_PK = batch.value_P[:, None].expand_as(reward_PK)
        worth, (kl_P, entropy_P) = advantage(reward_PK, baseline_PK), now.kl_and_entropy(batch.reference)
        log_prob_PK = now.log_prob(batch.item_PK)
        found = ppo_loss(log_prob_PK, batch.log_old_PK, worth, batch.unseen_P, kl_P, self.temperature, self.clip)
        metrics = {**found.metrics, **state_of(batch, kl_P, entropy_P)}
        if self.baseline == "group":
            return Loss(found.total, found.count, metrics)
        assert now.head_P is not None
        error = (now.head_P[:, None] - reward_PK).square().mean(1).sum()
        metrics |= {"value_loss": error.detach(), "explained_variance": worth.explained * len(reward_PK)}
        return Loss(found.total + self.value_coefficient / worth.square * error, found.count, metrics)
