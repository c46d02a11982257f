"""Policies that are a table of logits: small enough to be worked out by hand, and able to represent any optimum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retilt.models import counter
from retilt.types import Batch


class TabularDistribution:
    """A categorical distribution per position, given by its log-probabilities over items 0 … V."""

    def __init__(self, log_prob_PV: Tensor, head_P: Tensor | None = None) -> None:
        self.log_prob_PV, self.head_P = log_prob_PV, head_P

    def log_prob(self, item: Tensor) -> Tensor:
        item_PK = item if item.ndim == 2 else item[:, None]
        return self.log_prob_PV.gather(1, item_PK).view(item.shape)

    def entropy(self) -> Tensor:
        return -self._mean(self.log_prob_PV)

    def kl(self, reference: TabularDistribution) -> Tensor:
        return self._mean(self.log_prob_PV - reference.log_prob_PV)

    def kl_and_entropy(self, reference: TabularDistribution) -> tuple[Tensor, Tensor]:
        return self.kl(reference), self.entropy().detach()

    def _mean(self, value_PV: Tensor) -> Tensor:
        """Under π; item 0 has no probability."""
        return (self.log_prob_PV.exp()[:, 1:] * value_PV[:, 1:]).sum(1)

    def unseen(self, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        return self._unseen(seen_item, seen_length_P).sum(1)

    def _unseen(self, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Probabilities, 0 of seen items; a seen item that the table does not have is no item."""
        p_PV = self.log_prob_PV.detach().exp()
        position = torch.arange(len(p_PV)).repeat_interleave(seen_length_P)
        known = seen_item < p_PV.shape[1]
        p_PV[position[known], seen_item[known]] = 0
        return p_PV

    def sample(self, draws: int, key_P: Tensor, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        cumulative_PV = self._unseen(seen_item, seen_length_P).double().cumsum(1)
        place_PK = counter.words(key_P, draws).double() / 2**62
        return torch.searchsorted(cumulative_PV, place_PK * cumulative_PV[:, -1:], right=True)


class TabularPolicy(nn.Module):
    """Logits of the next item, and a value, are learned for each last item; items beyond V are states only."""

    def __init__(self, log_prob_SV: Tensor, value: bool = False) -> None:
        """``log_prob_SV``: what the next item's probabilities are at first, by last item; column 0 is padding's."""
        super().__init__()
        self.logits = nn.Parameter(log_prob_SV.clone())
        self.value = nn.Parameter(log_prob_SV.new_zeros(len(log_prob_SV))) if value else None
        self.step = 0

    def forward(self, batch: Batch) -> TabularDistribution:
        last_P = batch.item_BT.roll(1, dims=1)[batch.supervised_BT]
        head_P = None if self.value is None else self.value[last_P]
        return TabularDistribution(self.logits[last_P].log_softmax(-1), head_P)

    @torch.no_grad()
    def exact(self, batch: Batch) -> TabularDistribution:
        return self(batch)

    def keys(self, batch: Batch) -> Tensor:
        return counter.keys(batch.example_B, batch.item_BT.shape[1], 0, self.step)[batch.supervised_BT]
