"""Avg Reward (Tables 3 to 6 of arXiv:2603.10279): what reward models think of items that a policy draws.

    Avg Reward(π) = mean over held-out positions s of 1/K · Σ_k r̂(s, a_k),   a_1 … a_K ~ π(· | s) without the history

with K = 10 independent draws at up to 10,000 positions. A policy that was tuned against one reward model is to be
judged by another beside it: one that was trained on other users. At the same positions stand the exact entropy and,
where there is a reference, the exact KL(π ‖ reference), both over the whole catalogue.

Legend: P positions, K draws of a position.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from retilt.evaluation import positions
from retilt.evaluation.statistics import CPU, Tally
from retilt.types import Batch, Distribution, ExactPolicy, RewardModel

POSITIONS = 10_000
"""Most held-out positions at which items are drawn."""
DRAWS = 10
"""Items drawn at each."""
ROUNDING = 1e-12
"""Nats below which a KL is 0, as that of a policy from itself: a ratio to what is left of rounding would be noise."""
SEED = 0
"""Of the choice of positions and of the draws: the same for all policies, whose differences are paired thereby."""


class AvgReward:
    """Sums over some held-out positions (a ranking.Measure, for what is ranked anyway)."""

    def __init__(
        self,
        reward_models: Mapping[str, RewardModel],
        reference: ExactPolicy | None,
        *,
        last: int,
        replicates: int,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        """Metrics ``{name of a reward model}`` (unit of the reward), ``entropy`` and ``kl`` (nats), group ``all``.

        Args:
            reward_models: by name, which becomes the metric's.
            reference: the policy that ``kl`` is measured from, in evaluation mode; None for no such metric.
            last: ``positions.threshold`` for ``POSITIONS`` under ``SEED``.
            replicates: bootstrap replicates R.
            seed: of the bootstrap.
            device: where policy and reward models compute.
        """
        names = (*reward_models, "entropy", *(() if reference is None else ("kl",)))
        self.models, self.reference, self.last, self.device = reward_models, reference, last, device
        self.tally = Tally(("all",), replicates, seed, device, names)

    @torch.no_grad()
    def add(self, batch: Batch, distribution: Distribution) -> None:
        """Count a batch's chosen positions in, of which ``distribution`` is a policy's. Collective."""
        key_P = positions.keys(batch, SEED)
        kept_P = key_P <= self.last
        some = positions.chosen(batch, kept_P).to(self.device)
        self._count(some, key_P[kept_P], distribution.at(kept_P.to(self.device)))

    @torch.no_grad()
    def add_policy(self, batch: Batch, policy: ExactPolicy) -> None:
        """The same of a policy in evaluation mode, which reads the histories of the chosen positions only."""
        key_P = positions.keys(batch, SEED)
        some = positions.chosen(batch, key_P <= self.last).to(self.device)
        self._count(some, key_P[key_P <= self.last], policy.exact(some))

    def _count(self, some: Batch, key_P: Tensor, distribution: Distribution) -> None:
        columns = []
        if self.models:
            draw_key_P = (key_P & 0x7FFFFFFF).to(torch.int32).to(self.device)
            item_PK = distribution.sample(DRAWS, draw_key_P, *positions.seen(some))
            columns += [each.score(some, item_PK).double().mean(1) for each in self.models.values()]
        if self.reference is None:
            columns.append(distribution.entropy())
        else:
            kl_P, entropy_P = distribution.kl_and_entropy(self.reference.exact(some))
            columns += [entropy_P, torch.where(kl_P < ROUNDING, 0.0, kl_P)]
        value_PM = torch.stack([column.double() for column in columns], dim=1).cpu()
        whole_P = torch.ones(len(value_PM), dtype=torch.bool)
        self.tally.add(some.target_example_P.cpu(), whole_P[None], value_PM, ~whole_P)
