"""What an online objective learns from: items that the policy draws, and what the frozen models say of them."""

from __future__ import annotations

import torch
from torch import Tensor

from retilt.algorithms.online import Online, distribution
from retilt.models.policy import CataloguePolicy
from retilt.types import Batch, Companions, Explored


@torch.no_grad()
def explore(policy: CataloguePolicy, companions: Companions, algorithm: Online, batch: Batch) -> Explored:
    """Draw items at some of the batch's positions, from the policy as it is and without dropout. Collective.

    ``policy`` is in training mode without dropout; its forward pass is the one that the first pass of descent repeats,
    so the first ratios are 1 to the bit. Which positions and which draws follow from the seed, the step and the
    example, so they are the same on any number of workers and after a resume.
    """
    if algorithm.contexts is not None:
        batch = batch.contexts(chosen(batch, policy.keys(batch), algorithm.contexts))
    now, reference = distribution(policy, batch), companions.reference.exact(batch)
    history = batch.history()
    item_PK = now.sample(algorithm.draws, policy.keys(batch), *history)
    return Explored(
        **vars(batch),
        item_PK=item_PK,
        reward_PK=companions.reward.score(batch, item_PK),
        log_old_PK=now.log_prob(item_PK),
        unseen_P=now.unseen(*history),
        log_reference_PK=reference.log_prob(item_PK),
        value_P=now.head_P,
        reference=reference,
    )


def chosen(batch: Batch, key_P: Tensor, contexts: int) -> Tensor:
    """Which events are targets still where each user keeps ``contexts`` of them, those of the lowest keys; (B, T)."""
    last = torch.iinfo(key_P.dtype).max
    key_BT = torch.full_like(batch.item_BT, last, dtype=key_P.dtype).masked_scatter(batch.supervised_BT, key_P)
    place_BT = key_BT.argsort(dim=1, stable=True).argsort(dim=1)
    return batch.supervised_BT & (place_BT < contexts)
