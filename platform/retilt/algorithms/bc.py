"""Behaviour cloning: imitate the log, whatever it was rewarded with.

    L = Σ_p −log π(a_p | s_p) / number of positions

Source: arXiv 2603.10279, section 6 ("BC"); it is also the pretraining objective. P: positions of this rank's batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from retilt.algorithms.weights import WeightTally, require_weight, weighted_nll
from retilt.types import Batch, Loss, Policy, Positions, Statistics


def bc_loss(log_prob_P: Tensor) -> Loss:
    """The module's equation for one rank's positions, shape (P,)."""
    return weighted_nll(log_prob_P, torch.ones_like(log_prob_P), "none", 1.0)


class BC(BaseModel):
    """Behaviour cloning has no hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Literal["bc"] = "bc"

    def check(self, statistics: Statistics) -> None:
        """Any reward will do: it is not read."""

    def check_weights(self, tally: WeightTally) -> None:
        """Raise InputError without positions."""
        require_weight(tally, allow_low_ess=True, remedy="")

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """1 for every position, shape (P,)."""
        return torch.ones_like(positions.reward_P)

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Negative log-likelihood of the logged items."""
        return bc_loss(policy(batch).log_prob(batch.target_item_P))
