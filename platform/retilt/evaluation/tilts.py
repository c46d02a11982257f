"""Policies that are not trained but tilted: controls that could explain a gain away.

    tilt_item   π(a|s) · exp(m_a / λ) / Z(s)        m_a the item's mean training reward, shrunk towards that of all
    tilt_rm     π(a|s) · exp(r̂(s, a) / λ) / Z(s)    the exact optimum of RLHF (eq. 3 of arXiv:2603.10279, by eq. 7)

λ is in the unit of the reward, as Exp-RSFT's. ``tilt_item`` is a policy like any other. ``tilt_rm`` needs the reward
model's opinion of every item at every position; it is asked tile by tile, for all λ at once, and only ranks are kept.

Letters: P positions, V items, K items of a tile, D width, L temperatures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.data.stream import trained_positions
from retilt.evaluation import positions
from retilt.evaluation.ranking import Targets
from retilt.evaluation.statistics import CPU, Tally
from retilt.models.catalog import ShardedTable
from retilt.models.policy import CataloguePolicy
from retilt.models.ranking import TIE, Seen
from retilt.models.softmax import CatalogueSoftmax
from retilt.models.tiles import unit
from retilt.ranks import together
from retilt.types import Batch, RewardModel

TILE_ITEMS = 256
"""Items that the reward model is asked about at once, at each position of a batch."""


def item_means(dataset: Dataset, protocol: str, max_length: int, strength: float, device: torch.device = CPU) -> Tensor:
    """m_a = (Σ r + k · mean) / (n_a + k) over the item's n_a training positions, (V + 1,) float64. Collective.

    Padding, and any item without a training position, has the mean of all.

    Args:
        dataset: whose training events are taken.
        protocol: ``select`` or ``refit``: the cut of the policy that is tilted.
        max_length: its window; the positions are those that it was trained on.
        strength: k, how many events of mean reward are added to each item's.
        device: where ranks are summed.
    """
    sums_2V = together(lambda: _rewards(dataset, protocol, max_length))
    sum_V, count_V = ranks.sum_(sums_2V.to(device)).cpu()
    mean = sum_V.sum() / count_V.sum()
    weight_V = count_V + strength
    return torch.where(weight_V > 0, (sum_V + strength * mean) / weight_V, mean)


def _rewards(dataset: Dataset, protocol: str, max_length: int) -> Tensor:
    """Sum and number of the rewards of each item at this rank's training positions, (2, V + 1)."""
    sums_2V = torch.zeros(2, dataset.items + 1, dtype=torch.float64)
    for each in trained_positions(dataset, protocol, max_length, ranks.rank(), ranks.world()):
        sums_2V[0].index_add_(0, each.item_P, each.reward_P.double())
        sums_2V[1].index_add_(0, each.item_P, torch.ones_like(each.reward_P, dtype=torch.float64))
    return sums_2V


class ItemTilt:
    """``tilt_item``, π · exp(m_a/λ) / Z, itself a policy (types.ExactPolicy)."""

    def __init__(self, policy: CataloguePolicy, mean_V: Tensor, temperature: float) -> None:
        """``mean_V`` are the items' mean rewards (``item_means``), ``temperature`` is λ in their unit."""
        # A constant makes no difference to π, but withdrawn items, which have no bias, then count as average ones.
        bias_V = (mean_V - mean_V[0]) / temperature
        bias_R = policy.rows.bias_R
        own_R = bias_V[policy.rows.first : policy.rows.last].to(bias_R)
        self.policy, self.rows = policy, replace(policy.rows, bias_R=bias_R + own_R)

    def __call__(self, batch: Batch) -> CatalogueSoftmax:
        """As ``exact``: it is not trained."""
        return self.exact(batch)

    def exact(self, batch: Batch) -> CatalogueSoftmax:
        """The tilted distribution at the batch's positions. Collective."""
        return replace(self.policy.exact(batch), rows=self.rows)


@torch.no_grad()
def reward_tilt_tallies(
    policy: CataloguePolicy,
    reward_model: RewardModel,
    batches: Iterable[Batch],
    targets: Mapping[float, Targets],
    recommended: Tensor,
    device: torch.device = CPU,
) -> dict[float, Tally]:
    """Tallies of ``tilt_rm`` by temperature, from one pass. Collective, as ranking.tally is.

    Args:
        policy: π, in evaluation mode.
        reward_model: r̂.
        batches: a rank's share; small ones, as ``TILE_ITEMS`` items are scored at each of their positions at once.
        targets: an empty one for each temperature λ, in the unit of the reward.
        recommended: (V + 1,) bool, items that the policy can recommend.
        device: where both compute.
    """
    for batch in batches:
        rank_LP = reward_tilt_ranks(policy, reward_model, batch.to(device), list(targets), recommended)
        for rank_P, each in zip(rank_LP.cpu(), targets.values(), strict=True):
            each.add(batch, rank_P)
    return {temperature: each.tally for temperature, each in targets.items()}


def reward_tilt_ranks(
    policy: CataloguePolicy, reward_model: RewardModel, batch: Batch, temperatures: Sequence[float], recommended: Tensor
) -> Tensor:
    """Rank of each target under π · exp(r̂/λ), for every λ, int64 (L, P). Collective.

    As Distribution.ranks: among active items without the seen ones, 1 = best, last among equals.
    """
    hidden_PD = policy.exact(batch).hidden_PD[:, : policy.table.width]
    target_P = batch.target_item_P
    logit_P = (hidden_PD * _unit(policy, target_P, hidden_PD)).sum(1)
    reward_P = reward_model.score(batch, target_P[:, None])[:, 0].double()
    slope_L = torch.tensor(temperatures, dtype=torch.float64, device=target_P.device).reciprocal()
    floor_LP = logit_P + slope_L[:, None] * reward_P - TIE
    above_LP = torch.zeros_like(floor_LP, dtype=torch.int64)
    seen = Seen.of(*positions.seen(batch))
    itself = Seen.of(target_P, torch.ones_like(target_P))
    for first in range(1, len(recommended), TILE_ITEMS):
        item_K = torch.arange(first, min(first + TILE_ITEMS, len(recommended)), device=target_P.device)
        logit_PK = hidden_PD @ _unit(policy, item_K, hidden_PD).T
        logit_PK[:, ~recommended[item_K.cpu()].to(logit_PK.device)] = -torch.inf
        for excluded in (seen, itself):
            excluded.mask(logit_PK, slice(0, len(target_P)), first)
        reward_PK = reward_model.score(batch, item_K.expand(len(target_P), -1)).double()
        for slope, floor_P, above_P in zip(slope_L, floor_LP, above_LP, strict=True):
            above_P += (logit_PK + slope * reward_PK >= floor_P[:, None]).sum(1)
    return above_LP + 1


def _unit(policy: CataloguePolicy, item_M: Tensor, like: Tensor) -> Tensor:
    """Normalised rows of items, (M, D). Collective where rows are sharded."""
    table = policy.table
    rows_MD = table.lookup(item_M, own=False)[0] if isinstance(table, ShardedTable) else table(item_M)
    return unit(rows_MD, like.dtype)
