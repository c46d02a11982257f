"""A policy to work out by hand: π(1 … 4 | s) = 1/2, 1/4, 1/8, 1/8 in every state, so −log2 π = 1, 2, 3, 3."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from retilt.types import Batch


class TabularDistribution:
    """A categorical distribution per position, given by its log-probabilities over items 0 … V."""

    def __init__(self, log_prob_PV: Tensor) -> None:
        self.log_prob_PV = log_prob_PV

    def log_prob(self, item_P: Tensor) -> Tensor:
        return self.log_prob_PV.gather(1, item_P[:, None])[:, 0]


class TabularPolicy(nn.Module):
    """Logits of the next item are a learned row per last item."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        items = len(probabilities)
        row = torch.tensor([0.0, *probabilities]).log()
        self.logits = nn.Parameter(row.repeat(items + 1, 1))

    def forward(self, batch: Batch) -> TabularDistribution:
        last_BT = batch.item_BT.roll(1, dims=1)
        return TabularDistribution(self.logits[last_BT[batch.supervised_BT]].log_softmax(-1))


@pytest.fixture
def policy() -> TabularPolicy:
    return TabularPolicy([1 / 2, 1 / 4, 1 / 8, 1 / 8])


@pytest.fixture
def batch() -> Batch:
    """Two users; the four targets are items 1, 2, 3, 4 with rewards 5, 4, 1, 5: −log2 π = 1, 2, 3, 3."""
    item_BT = torch.tensor([[1, 1, 2, 3], [4, 4, 0, 0]])
    return Batch(
        item_BT=item_BT,
        reward_BT=torch.tensor([[3.0, 5.0, 4.0, 1.0], [2.0, 5.0, 0.0, 0.0]]),
        time_BT=torch.zeros_like(item_BT),
        supervised_BT=torch.tensor([[False, True, True, True], [False, True, False, False]]),
        length_B=torch.tensor([4, 2]),
        example_B=torch.tensor([0, 1]),
    )


@pytest.fixture
def empty_share() -> Batch:
    """A rank's share without users."""
    nothing = torch.zeros((0, 1), dtype=torch.int64)
    return Batch(nothing, nothing.float(), nothing, nothing.bool(), nothing[:, 0], nothing[:, 0])
