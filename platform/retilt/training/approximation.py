"""How far a sampled softmax is from the exact one, measured on a few hundred positions after each epoch."""

from __future__ import annotations

import torch

from retilt import ranks
from retilt.config import TrainConfig
from retilt.models.counter import keys
from retilt.models.policy import CataloguePolicy
from retilt.types import Batch

PROBE_POSITIONS = 512
"""About so many positions are looked at: the exact softmax is worked out for each, over the whole catalogue."""
DRAWS = 8
POOR = 0.1
"""Gap from which the user is warned."""


def sampling_gap(policy: CataloguePolicy, batch: Batch) -> float:
    """Mean over positions of |E π̂(a) − π(a)|, a the target: equal on all ranks and for any number of them. Collective.

    That is the total variation between the exact softmax and the mean of the sampled one over ``DRAWS`` sets of
    negatives, each taken as a distribution over two outcomes, the target and all else: it says by how much the pull
    towards the target, 1 − π(a), is wrong. ``policy`` is in training mode, ``batch`` this rank's share.
    """
    positions = ranks.sum_(batch.supervised_BT.sum().double())
    share = min(1.0, PROBE_POSITIONS / max(1.0, float(positions)))
    lot_B = keys(batch.example_B, 1, policy.seed, policy.step)[:, 0]
    probe = batch.select((lot_B <= int(share * (1 << 32)) - (1 << 31) - 1).nonzero().squeeze(1))
    gap_P = policy.gap(probe, DRAWS)
    total, count = ranks.sum_(torch.stack([gap_P.double().sum(), positions.new_tensor(len(gap_P))])).tolist()
    return float(total / max(1.0, count))


def warnings(gap: float, config: TrainConfig) -> list[str]:
    """One sentence for the user where the gap is large."""
    if gap < POOR:
        return []
    drawn = f"{config.negative_count:,} {config.proposal} negatives"
    what = "in-batch negatives" if config.proposal == "in_batch" else drawn
    return [
        f"with {what} the sampled softmax differs from the exact one by {gap:.2f} (total variation, target against all "
        "else): more negatives (negative_count=, batch_users=) or another proposal= would be closer"
    ]
