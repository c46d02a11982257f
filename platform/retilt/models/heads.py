"""What a network says beside its distribution: V(s) of a state, or r̂(s, a) of an item that is tried in it.

Both are shallow: two layers on a normalised hidden state, the second one zero at first, so that training starts from
what is known without a state. They answer in the data's unit, by the mean and standard deviation of training rewards.

Letters: B users, T inputs, P supervised positions, K items tried at each, D width, V items.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

Kind = Literal["value", "paper", "strong"]
USER_EVENTS, ITEM_EVENTS = 5.0, 10.0
"""Events without a residual that a user's and an item's mean is shrunk by."""


class Unit(NamedTuple):
    """The unit of the data's rewards."""

    mean: float
    sd: float


STANDARD = Unit(0.0, 1.0)


class Asked(NamedTuple):
    """The positions at which a head is asked, and what it is asked about."""

    user_P: Tensor
    """int64, row of the batch, ascending."""
    place_P: Tensor
    """int64, place of the target's event, at least 1."""
    item_PK: Tensor
    """int64, items that are tried; K = 0 where a head is asked about states."""
    item_BT: Tensor
    """int64, inputs."""
    reward_BT: Tensor
    """float32, what they were rewarded with, in the data's unit."""


def _shallow(width: int) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
    last = net[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


class _Head(nn.Module):
    mean: Tensor
    sd: Tensor

    def __init__(self, width: int, unit: Unit) -> None:
        super().__init__()
        self.net = _shallow(width)
        self.register_buffer("mean", torch.tensor(unit.mean, dtype=torch.float32))
        self.register_buffer("sd", torch.tensor(unit.sd or 1.0, dtype=torch.float32))

    def deviation(self, hidden_PKD: Tensor) -> Tensor:
        """What the states say, in the data's unit, (P, K) or (P,)."""
        found: Tensor = self.net(layer_norm(hidden_PKD, hidden_PKD.shape[-1:]))
        return self.sd * found.squeeze(-1)


class ValueHead(_Head):
    """V(s): the reward to be expected of the policy's own choices; the training rewards' mean at first."""

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """In the data's unit, (P,)."""
        return self.mean + self.deviation(hidden_PD)


class PastRewards(nn.Module):
    """Tells a history what its events were rewarded with: x + z·w + z·(g ⊙ x), z the standardised reward.

    Both vectors are zero at first: the trunk then reads the history as the policy did that it was copied from.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: Tensor, z_BT: Tensor) -> Tensor:
        """Embeddings of the history, (B, T, D)."""
        return x_BTD + z_BT[:, :, None] * (self.shift + self.gain * x_BTD)


class RewardHead(_Head):
    """r̂(s, a) from the state of a tried item: ``paper`` by that alone, ``strong`` with more about user and item.

    ``strong`` (an opponent as good as is easily had; not in arXiv 2603.10279)::

        r̂ = mean + b_a + b_u(t) + sd · net(h),   b_u(t) = Σ_{j<t} (r_j − mean − b_j) / (t + 5)

    with b_a the item's mean deviation over the training events, shrunk by 10 events, and the past rewards as a part of
    the history (``PastRewards``). Of the user's own rewards a position is told those of events before it only; but b_a
    is fixed before training and counts every training event, so in training also the target: its reward is in its own
    b_a with weight 1/(n_a + 10), more than for any held-out event. For rare items training errors are too small by that
    much; errors on held-out events, by which epochs are chosen and models audited, are not. Means that leave the target
    out were tried instead: an embedding learns from the difference which reward was left out (docs/experiments.md).
    """

    item_bias: Tensor

    def __init__(self, width: int, unit: Unit, items: int | None = None) -> None:
        """``items``, the size of the catalogue, makes it the strong variant."""
        super().__init__(width, unit)
        self.strong = items is not None
        if items is not None:
            self.history = PastRewards(width)
            self.register_buffer("item_bias", torch.zeros(items + 1))

    @torch.no_grad()
    def set_item_bias(self, sum_V: Tensor, count_V: Tensor) -> None:
        """From the sum of each item's training rewards and their number, both (V + 1,)."""
        self.item_bias.copy_((sum_V - self.mean * count_V) / (count_V + ITEM_EVENTS))

    def told(self, x_BTD: Tensor, reward_BT: Tensor) -> Tensor:
        """The history's embeddings, with its rewards where this variant knows them."""
        if not self.strong:
            return x_BTD
        found: Tensor = self.history(x_BTD, (reward_BT - self.mean) / self.sd)
        return found

    def forward(self, hidden_PKD: Tensor, asked: Asked) -> Tensor:
        """r̂ in the data's unit, (P, K)."""
        found_PK = self.mean + self.deviation(hidden_PKD)
        if not self.strong:
            return found_PK
        return found_PK + self.item_bias[asked.item_PK] + self._user_bias(asked)[:, None]

    def _user_bias(self, asked: Asked) -> Tensor:
        """b_u(t), (P,)."""
        residual_BT = asked.reward_BT - self.mean - self.item_bias[asked.item_BT]
        past_P = residual_BT.cumsum(1)[asked.user_P, asked.place_P - 1]
        return past_P / (asked.place_P + USER_EVENTS)


Head = ValueHead | RewardHead
