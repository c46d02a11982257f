"""Logged positions from plain lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retilt.types import Positions


def positions(reward: Sequence[float] | torch.Tensor, user: Sequence[int] | None = None) -> Positions:
    """Positions of item 1; ``user`` says whose each is, by default all are one user's."""
    reward_P = torch.as_tensor(reward, dtype=torch.float32)
    example_P = torch.zeros(len(reward_P), dtype=torch.int64) if user is None else torch.tensor(user)
    return Positions(torch.ones(len(reward_P), dtype=torch.int64), reward_P, example_P)
