"""A reward model: what a user would reward an item with, learnt from what the log's items were rewarded with.

    L = Σ_p [ (r̂(s_p, a_p) − r_p)² + α · (−log π(a_p | s_p)) ] / number of positions

r̂ is a head on a copy of the initial policy's trunk and item table, which are trained with it; the policy itself stays
as it is. The second term keeps the trunk what it was. Source: arXiv 2603.10279, section 6 ("Model": "we co-train a
reward model as a shallow reward head on top of the generative recommender"); the weight α is not given there. r̂ is of
the logged item as one that is tried (models/trying.py), the way in which it is asked later about any other. P:
positions of this rank's batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from retilt.algorithms.weights import WeightTally, require_weight
from retilt.types import Batch, InputError, Loss, Policy, Positions, Statistics

_GOLDEN = -0x61C8864680B583EB
"""2⁶⁴ divided by the golden ratio, as a signed number: its multiples lie evenly (Knuth 1973, section 6.4)."""


def reward_model_loss(predicted_P: Tensor, reward_P: Tensor, log_prob_P: Tensor | None, imitation: float) -> Loss:
    """The module's equation for one rank's positions; rewards in the data's unit, ``log_prob_P`` None for α = 0."""
    error_P = predicted_P - reward_P
    total = error_P.square().sum()
    with torch.no_grad():
        metrics = {"mse": total.detach(), "mae": error_P.abs().sum(), "predicted_reward": predicted_P.sum()}
    count = torch.full_like(total.detach(), len(reward_P))
    metrics["positions"] = count  # a batch has those of other users too
    if log_prob_P is not None:
        nll = -log_prob_P.sum()
        metrics["nll"] = nll.detach()
        total = total + imitation * nll
    return Loss(total, count, {name: each.detach() for name, each in metrics.items()})


class RewardModel(BaseModel):
    """Hyper-parameters of a reward model."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: Literal["reward_model"] = "reward_model"
    variant: Literal["paper", "strong"] = "paper"
    """`paper`: a head on the state of a tried item; `strong`: also past rewards, a user's and an item's bias."""
    imitation: float = Field(default=0.1, ge=0)
    """α, weight of the logged items' negative log-likelihood beside the squared error; 0 leaves it out."""
    users: list[float] = Field(default=[0.0, 1.0])
    """Share of the users that it learns from, [from, to] of a hash of their row: a judge can learn from the others."""

    @field_validator("users")
    @classmethod
    def _a_share(cls, value: list[float]) -> list[float]:
        if len(value) != 2 or not 0 <= value[0] < value[1] <= 1:
            raise InputError(f"{value}: a share of users is [from, to] with 0 ≤ from < to ≤ 1, like [0, 0.5]")
        return value

    def check(self, statistics: Statistics) -> None:
        """Raise InputError where all rewards are equal: there is nothing to learn."""
        if statistics.reward_min == statistics.reward_max:
            raise InputError(
                f"every training reward is {statistics.reward_min:g}: a reward model has nothing to learn from; use a "
                "data set whose rewards differ"
            )

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError without positions."""
        require_weight(tally, allow_low_ess=True, remedy="choose a larger share with algorithm.users")

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """1 for positions of the share's users, 0 for the others, shape (P,)."""
        return self.chosen(positions.example_P).to(positions.reward_P.dtype)

    def chosen(self, example: Tensor) -> Tensor:
        """Which users (global row numbers, int64) belong to the share, bool."""
        place = ((example * _GOLDEN) >> 32 & 0xFFFFFFFF).double() / 2**32
        return (place >= self.users[0]) & (place < self.users[1])

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Squared error of the logged items' rewards, and their negative log-likelihood."""
        batch = batch.select(self.chosen(batch.example_B).nonzero().squeeze(1))
        found = policy(batch)
        assert found.head_P is not None
        log_prob_P = found.log_prob(batch.target_item_P) if self.imitation else None
        return reward_model_loss(found.head_P, batch.target_reward_P, log_prob_P, self.imitation)
