"""Pairwise accuracy: does a policy prefer what a user rated highly to what the same user rated poorly?

    accuracy(u) = mean over pairs (high, low) of u's held-out items of 1[π(high | s) > π(low | s)] + ½ 1[equal]

with one history s for all of them: that before the user's first held-out event. The mean is over users who have a
pair, each counted once; by chance it is one half. Popularity cannot decide it by the choice of positions, as both items
of a pair were chosen by the same user and are scored at the same place.

Legend: B users, P positions, K most held-out items of a user.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retilt.evaluation.statistics import CPU, Tally
from retilt.types import Batch, Distribution

ACCURACY = "pairwise_accuracy"


class Pairs:
    """Sums over users with a pair of a high and a low held-out item."""

    def __init__(
        self, low: float, high: float, held_out: int, replicates: int, seed: int, device: torch.device = CPU
    ) -> None:
        """High are rewards of at least ``high``, low those of at most ``low``, in the data's unit.

        ``held_out`` is K, that of the split: every rank asks about as many items.
        """
        assert low < high
        self.held_out = held_out
        self.low, self.high, self.device = torch.tensor(low), torch.tensor(high), device
        self.tally = Tally(("all",), replicates, seed, device, (ACCURACY,))

    def add(self, batch: Batch, distribution: Distribution) -> None:
        """Count a batch's users in. Collective."""
        targets_B = batch.supervised_BT.sum(1)
        held_BK = torch.arange(self.held_out) < targets_B[:, None]
        item_BK, reward_BK = held_BK.long(), torch.zeros(held_BK.shape)
        item_BK[held_BK], reward_BK[held_BK] = batch.target_item_P, batch.target_reward_P
        score_PK = distribution.log_prob(item_BK.repeat_interleave(targets_B, dim=0).to(self.device)).cpu()
        score_BK = score_PK[targets_B.cumsum(0) - targets_B]
        high_BK, low_BK = held_BK & (reward_BK >= self.high), held_BK & (reward_BK <= self.low)
        accuracy_B, having_B = _accuracy(score_BK, high_BK, low_BK)
        users = int(having_B.sum())
        whole_U = torch.ones(users, dtype=torch.bool)
        self.tally.add(batch.example_B[having_B], whole_U[None], accuracy_B[having_B, None], ~whole_U)


def _accuracy(score_BK: Tensor, high_BK: Tensor, low_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy of each user, float64 (B,), and who has a pair, bool (B,)."""
    pair_BKK = high_BK[:, :, None] & low_BK[:, None, :]
    above_BKK = (score_BK[:, :, None] > score_BK[:, None, :]).double()
    above_BKK += (score_BK[:, :, None] == score_BK[:, None, :]).double() / 2
    pairs_B = pair_BKK.sum((1, 2))
    return (above_BKK * pair_BKK).sum((1, 2)) / pairs_B.clamp(min=1), pairs_B > 0
