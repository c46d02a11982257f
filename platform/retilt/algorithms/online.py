"""What objectives share that learn from a reward model's opinion of their own choices: dpo and ppo.

Before each batch the policy draws items at some of its positions (training/explore.py); the reward model says what they
are worth, and the objective descends on that for one or more passes. Both have the optimum

    π*(a | s) ∝ π_ref(a | s) · exp(r̂(s, a) / λ)

of equation 3 of arXiv 2603.10279, so λ is comparable with ``exp_rsft``'s and in the unit of the reward.

Draws never contain an item of the history, as in evaluation; log π is nevertheless the whole catalogue's. With m the
mass of π on the history, the masked policy's log-probability is log π − log(1 − m). The last term is the same for all
draws of a context, so it cancels in the difference of two of them (dpo); ppo weights a context by 1 − m, which makes of
a mean over draws a sum over the catalogue.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from retilt.algorithms.weights import WeightTally, require_weight
from retilt.types import Batch, Distribution, Explored, InputError, Policy, Positions, Statistics


def distribution(policy: Policy, batch: Batch) -> Distribution:
    """π at the batch's positions; a run whose softmax is sampled is refused before it begins (training/run.py)."""
    return cast("Distribution", policy(batch))


def state_of(explored: Explored, kl_P: Tensor, entropy_P: Tensor) -> dict[str, Tensor]:
    """The metrics that dpo and ppo have in common: sums over positions, without gradient."""
    score = explored.reward_PK.mean(1).sum()
    return {"reward_model_score": score, "kl": kl_P.detach().sum(), "entropy": entropy_P.sum()}


class Online(BaseModel):
    """Hyper-parameters that dpo and ppo share."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    temperature: float = Field(default=0.5, gt=0)
    """λ, the coefficient of KL(π ‖ π_ref) in the unit of the reward: small follows the reward model."""
    contexts: int | None = Field(default=16, ge=1)
    """Positions of each user that are tried in a batch, chosen anew each time; null: all of them."""
    draws: int = Field(ge=1)
    """Items drawn at each position."""
    passes: int = Field(ge=1)
    """Updates on each batch of draws."""

    def check(self, statistics: Statistics) -> None:
        """Raise InputError where all rewards are equal: no reward model can prefer one item to another then."""
        if statistics.reward_min == statistics.reward_max:
            raise InputError(
                f"every training reward is {statistics.reward_min:g}: there is nothing that a reward model could learn"
            )

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError without positions."""
        require_weight(tally, allow_low_ess=True, remedy="")

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """1 for every position, shape (P,): logged choices are contexts only."""
        return torch.ones_like(positions.reward_P)
