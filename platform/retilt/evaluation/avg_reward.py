"""Avg Reward (Tables 3 to 6 of arXiv:2603.10279): what reward models think of items that a policy draws.

    Avg Reward(π) = mean over held-out positions s of 1/K · Σ_k r̂(s, a_k),   a_1 … a_K ~ π(· | s) without the history

with K = 10 independent draws at up to 10,000 positions. A policy that was tuned against one reward model is to be
judged by another beside it: one that was trained on other users. At the same positions stand the exact entropy and,
where there is a reference, the exact KL(π ‖ reference), both over the whole catalogue.

Legend: P positions, K draws of a position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from retilt.evaluation import positions
from retilt.evaluation.statistics import CPU, Tally
from retilt.types import Batch, ExactPolicy, RewardModel

POSITIONS = 10_000
"""Most held-out positions at which items are drawn."""
DRAWS = 10
"""Items drawn at each."""
ROUNDING = 1e-12
"""Nats below which a KL is 0, as that of a policy from itself: a ratio to what is left of rounding would be noise."""
SEED = 0
"""Of the choice of positions and of the draws: the same for all policies, whose differences are paired thereby."""


@torch.no_grad()
def tally(
    policy: ExactPolicy,
    batches: Iterable[Batch],
    reward_models: Mapping[str, RewardModel],
    reference: ExactPolicy | None,
    *,
    last: int,
    replicates: int,
    seed: int,
    device: torch.device = CPU,
) -> Tally:
    """This rank's positions, counted in. Collective: every rank gives the same number of batches, empty ones included.

    Args:
        policy: in evaluation mode.
        batches: a rank's share of a held-out part, as ranking.tally takes it.
        reward_models: by name, which becomes the metric's.
        reference: the policy that the metric ``kl`` is measured from, in evaluation mode; None for no such metric.
        last: ``positions.threshold`` for ``POSITIONS`` under ``SEED``.
        replicates: bootstrap replicates R.
        seed: of the bootstrap.
        device: where policy and reward models compute.

    Returns:
        Metrics ``{name of a reward model}`` (unit of the reward), ``entropy`` (nats) and ``kl`` (nats), group ``all``.
    """
    names = (*reward_models, "entropy", *(() if reference is None else ("kl",)))
    found = Tally(("all",), replicates, seed, device, names)
    for batch in batches:
        key_P = positions.keys(batch, SEED)
        kept_P = key_P <= last
        some = positions.chosen(batch, kept_P).to(device)
        distribution = policy.exact(some)
        columns = []
        if reward_models:
            draw_key_P = (key_P[kept_P] & 0x7FFFFFFF).to(torch.int32).to(device)
            item_PK = distribution.sample(DRAWS, draw_key_P, *positions.seen(some))
            columns += [each.score(some, item_PK).double().mean(1) for each in reward_models.values()]
        columns.append(distribution.entropy())
        if reference is not None:
            kl_P = distribution.kl(reference.exact(some))
            columns.append(torch.where(kl_P < ROUNDING, 0.0, kl_P))
        value_PM = torch.stack([column.double() for column in columns], dim=1).cpu()
        whole_P = torch.ones(len(value_PM), dtype=torch.bool)
        found.add(some.target_example_P.cpu(), whole_P[None], value_PM, ~whole_P)
    return found
