"""Exact ranks of held-out targets over the whole catalogue, summed into a tally."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from retilt.evaluation import groups, positions, returns
from retilt.evaluation.groups import Division
from retilt.evaluation.metrics import MISS, metrics
from retilt.evaluation.statistics import CPU, Tally
from retilt.types import Batch, Distribution, ExactPolicy


class Measure(Protocol):
    """Something else that is measured of the same distributions (lists.py, pairs.py, avg_reward.py)."""

    def add(self, batch: Batch, distribution: Distribution) -> None:
        """Count a batch in, which is on the CPU. Collective."""
        ...


class Targets:
    """A rank's targets and how high each was ranked."""

    def __init__(
        self,
        *,
        train_counts: Tensor,
        min_reward: float | None,
        replicates: int,
        seed: int,
        device: torch.device = CPU,
        low_reward: float | None = None,
        high_return: float | None = None,
        division: Division | None = None,
    ) -> None:
        """See ``tally``."""
        self.train_counts, self.min_reward, self.low_reward = train_counts, min_reward, low_reward
        self.high_return, self.division = high_return, division
        names = ["all", "untied"] if min_reward is None else ["all", "high_reward", "untied"]
        names += [] if low_reward is None else ["low_reward"]
        names += [] if high_return is None else ["high_return"]
        names += [] if division is None else [f"{groups.WITHIN}{name}" for name in groups.NAMES]
        self.tally = Tally(names, replicates, seed, device)

    def add(self, batch: Batch, rank_P: Tensor) -> None:
        """Count a batch's targets in at their ranks (int64, 1 = best); both on the CPU."""
        never_P = self.train_counts[batch.target_item_P] == 0
        metrics_PM = metrics(rank_P.masked_fill(never_P, MISS))
        self.tally.add(batch.target_example_P, self._members(batch), metrics_PM, never_P)

    def _members(self, batch: Batch) -> Tensor:
        """Which group each target belongs to, bool (G, P)."""
        assert batch.untied_P is not None, "evaluation batches say which targets are untied"
        reward_P = batch.target_reward_P
        headline_P = torch.ones_like(batch.untied_P)
        members = [headline_P, batch.untied_P]
        # In the rewards' own precision: a stored 4.1 must reach a threshold of 4.1.
        if self.min_reward is not None:
            headline_P = reward_P >= torch.tensor(self.min_reward, dtype=reward_P.dtype)
            members.insert(1, headline_P)
        if self.low_reward is not None:
            members.append(reward_P <= torch.tensor(self.low_reward, dtype=reward_P.dtype))
        if self.high_return is not None:
            headline_P = returns.high(batch, self.high_return)
            members.append(headline_P)
        if self.division is not None:
            members += list(self.division.members(batch) & headline_P)
        return torch.stack(members)


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
    low_reward: float | None = None,
    high_return: float | None = None,
    division: Division | None = None,
    also: Sequence[Measure] = (),
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
        low_reward: largest reward of the group ``low_reward``; None for no such group.
        high_return: smallest return (``returns.bound``) of users whose targets form the group ``high_return``; None for
            no such group.
        division: of the targets into groups that tell who gains; None for none.
        also: what else is measured of each batch's distribution.
    """
    found = Targets(
        train_counts=train_counts, min_reward=min_reward, replicates=replicates, seed=seed, device=device,
        low_reward=low_reward, high_return=high_return, division=division,
    )  # fmt: skip
    for batch in batches:
        here = batch.to(device)
        distribution = policy.exact(here)
        found.add(batch, distribution.ranks(here.target_item_P, *positions.seen(here)).cpu())
        for measure in also:
            measure.add(batch, distribution)
    return found.tally
