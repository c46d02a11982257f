"""Exact ranks of held-out targets over the whole catalogue, summed into a tally."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from retilt.evaluation.metrics import MISS, metrics
from retilt.evaluation.statistics import CPU, Tally
from retilt.types import Batch, ExactPolicy


@torch.no_grad()
def tally(
    policy: ExactPolicy,
    batches: Iterable[Batch],
    *,
    train_counts: Tensor,
    min_reward: float | None,
    replicates: int,
    seed: int,
    device: torch.device = CPU,
) -> Tally:
    """This rank's targets, counted in. Collective: every rank gives the same number of batches, empty ones included.

    Args:
        policy: in evaluation mode.
        batches: a rank's share, with ``untied_P`` and (unless nothing is excluded) the jagged ``seen_item``.
        train_counts: (V + 1,) training events of each item at the policy's cut; a target with none is a miss.
        min_reward: smallest reward of the group ``high_reward``, in the data's unit; None for no such group.
        replicates: bootstrap replicates R; 0 for means alone.
        seed: of the bootstrap; equal for policies that are to be compared.
        device: where the policy computes.
    """
    groups = ("all", "untied") if min_reward is None else ("all", "high_reward", "untied")
    found = Tally(groups, replicates, seed, device)
    for batch in batches:
        rank_P = _ranks(policy, batch.to(device)).cpu()
        never_P = train_counts[batch.target_item_P] == 0
        metrics_PM = metrics(rank_P.masked_fill(never_P, MISS))
        found.add(batch.target_example_P, _members(batch, min_reward), metrics_PM, never_P)
    return found


def _ranks(policy: ExactPolicy, batch: Batch) -> Tensor:
    item_P, seen_item, seen_length_P = batch.target_item_P, batch.seen_item, batch.seen_length_P
    if seen_item is None or seen_length_P is None:
        seen_item, seen_length_P = item_P.new_zeros(0), torch.zeros_like(item_P)
    return policy.exact(batch).ranks(item_P, seen_item, seen_length_P)


def _members(batch: Batch, min_reward: float | None) -> Tensor:
    """Which group each target belongs to, bool (G, P)."""
    assert batch.untied_P is not None, "evaluation batches say which targets are untied"
    reward_P = batch.target_reward_P
    members = [torch.ones_like(batch.untied_P), batch.untied_P]
    if min_reward is not None:
        # In the rewards' own precision: a stored 4.1 must reach a threshold of 4.1.
        members.insert(1, reward_P >= torch.tensor(min_reward, dtype=reward_P.dtype))
    return torch.stack(members)
