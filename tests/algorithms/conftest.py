"""A policy to work out by hand: π(1 … 4 | s) = 1/2, 1/4, 1/8, 1/8 in every state, so −log2 π = 1, 2, 3, 3."""

from __future__ import annotations

import pytest
import torch
from tests.algorithms.tabular import TabularPolicy

from retilt.types import Batch


@pytest.fixture
def policy() -> TabularPolicy:
    return TabularPolicy(torch.tensor([0, 1 / 2, 1 / 4, 1 / 8, 1 / 8]).log().repeat(5, 1))


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
