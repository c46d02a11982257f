"""Online direct preference optimisation: of two items that the policy draws, the reward model's favourite is preferred.

    L = Σ_p −[P log σ(β(Δ₁ − Δ₂)) + (1 − P) log σ(β(Δ₂ − Δ₁))] / number of positions,   Δ = log π − log π_ref

    labels = bradley_terry   P = σ((r̂₁ − r̂₂)/s), s = λ/β: the optimum is π_ref · exp(r̂/λ) / Z
    labels = hard            P = 1[r̂₁ > r̂₂], one half where they are equal: no finite optimum, what stops it is β and
                             the number of steps

Sources: Rafailov et al. 2023 (equation 7) for the loss; arXiv 2603.10279, section 6 ("DPO") for drawing pairs online
and labelling them by a reward model. Of K draws consecutive ones form K/2 pairs, whose mean is a position's loss. A
pair of two equal draws contributes log 2 and no gradient: it is counted, so that a position's expected loss is that of
independent draws. P: positions of this rank's batch, K: draws of a position, J: pairs. History: see online.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from retilt.algorithms.online import Online, distribution, state_of
from retilt.types import Batch, Explored, Loss, Policy, Statistics


def preference(first: Tensor, second: Tensor, scale: float | None) -> Tensor:
    """P that the first is preferred, by their rewards: Bradley–Terry of this ``scale``, or the larger one (None)."""
    difference = first - second
    return (torch.sign(difference) + 1) / 2 if scale is None else torch.sigmoid(difference / scale)


def dpo_loss(
    log_prob_PK: Tensor, log_reference_PK: Tensor, reward_PK: Tensor, beta: float, scale: float | None
) -> Loss:
    """The module's equation for one rank's positions; ``scale`` s in the unit of the reward, None for hard labels."""
    margin_PK = beta * (log_prob_PK - log_reference_PK)
    margin_PJ = margin_PK[:, ::2] - margin_PK[:, 1::2]
    first_PJ, second_PJ = reward_PK[:, ::2], reward_PK[:, 1::2]
    p_PJ = preference(first_PJ, second_PJ, scale)
    # −log σ(x) = softplus(−x), without overflow.
    total = (p_PJ * softplus(-margin_PJ) + (1 - p_PJ) * softplus(margin_PJ)).mean(1).sum()
    sign_PJ, log_prob_PK = torch.sign(first_PJ - second_PJ), log_prob_PK.detach()
    log_first_PJ, log_second_PJ = log_prob_PK[:, ::2], log_prob_PK[:, 1::2]
    metrics = {
        "chosen_log_prob": torch.where(sign_PJ < 0, log_second_PJ, log_first_PJ),
        "rejected_log_prob": torch.where(sign_PJ < 0, log_first_PJ, log_second_PJ),
        "margin": sign_PJ * margin_PJ.detach(),
        "accuracy": (1 + sign_PJ * torch.sign(margin_PJ.detach())) / 2,
    }
    count = torch.full_like(total.detach(), len(log_prob_PK))
    return Loss(total, count, {name: each_PJ.mean(1).sum() for name, each_PJ in metrics.items()})


class DPO(Online):
    """Hyper-parameters of online direct preference optimisation."""

    name: Literal["dpo"] = "dpo"
    labels: Literal["bradley_terry", "hard"] = "bradley_terry"
    """Which of two draws is preferred: with the probability that their rewards give, or always the better one."""
    beta: float = Field(default=0.1, gt=0)
    """β, how large a log-ratio the preference of one pair asks for; `temperature` keeps its meaning whatever it is."""
    draws: int = Field(default=2, ge=2, multiple_of=2)
    """Items drawn at each position; two and two form a pair."""
    passes: int = Field(default=1, ge=1)
    """Updates on each batch of draws."""

    @property
    def scale(self) -> float | None:
        """s = λ/β of the labels, in the unit of the reward; None for hard ones."""
        return None if self.labels == "hard" else self.temperature / self.beta

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """Cross-entropy of the pairs' preferences; ``batch`` is an ``Explored``. Collective."""
        assert isinstance(batch, Explored)
        now = distribution(policy, batch)
        log_prob_PK = now.log_prob(batch.item_PK)
        found = dpo_loss(log_prob_PK, batch.log_reference_PK, batch.reward_PK, self.beta, self.scale)
        with torch.no_grad():
            kl_P, entropy_P = now.kl_and_entropy(batch.reference)
        return Loss(found.total, found.count, {**found.metrics, **state_of(batch, kl_P, entropy_P)})
