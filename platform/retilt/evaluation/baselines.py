"""What predicts a reward without a model of sequences: means of the training events, and user and item biases.

    global mean   μ
    item mean     mean reward of the item's training events, μ without any
    user mean     mean reward of the user's training events
    user + item   μ + b_a + b_u,   b_a = Σ (r − μ) / (n_a + 25),   b_u = Σ (r − μ − b_a) / (n_u + 10)

The first three are Table 2's of arXiv 2603.10279; the last is the usual bias model with the usual shrinkage (Koren
2010, section 2.1, where the numbers are Netflix's). Memory: O(users) + O(items), two passes over the training events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.data.stream import training_events
from retilt.ranks import together

ITEM_SHRINKAGE, USER_SHRINKAGE = 25.0, 10.0
PREDICTORS = ("global_mean", "item_mean", "user_mean", "user_item_bias")


def item_rewards(
    dataset: Dataset, protocol: str, device: torch.device, chosen: Callable[[Tensor], Tensor] = torch.ones_like
) -> tuple[Tensor, Tensor]:
    """Sum and number of each item's training rewards, both (V + 1,) float64 on the CPU. Collective.

    ``chosen`` says of users (global row numbers, int64) whether their events count; ``device`` is where ranks are
    summed.
    """

    def read() -> Tensor:
        found_2V = torch.zeros(2, dataset.items + 1, dtype=torch.float64)
        for events in training_events(dataset, protocol, ranks.rank(), ranks.world()):
            weight_P = chosen(events.example_P).double()
            found_2V[0].index_add_(0, events.item_P, weight_P * events.reward_P)
            found_2V[1].index_add_(0, events.item_P, weight_P)
        return found_2V

    sum_V, count_V = ranks.sum_(together(read).to(device)).cpu()
    return sum_V, count_V


def _user_rewards(dataset: Dataset, protocol: str, device: torch.device, item_bias_V: Tensor) -> Tensor:
    """Of each user's training events: their number, the sum of rewards, that of the items' biases; (3, U) float64."""

    def read() -> Tensor:
        found_3U = torch.zeros(3, dataset.users, dtype=torch.float64)
        for events in training_events(dataset, protocol, ranks.rank(), ranks.world()):
            bias_P = item_bias_V[events.item_P]
            columns = torch.stack([torch.ones_like(bias_P), events.reward_P.double(), bias_P])
            found_3U.index_add_(1, events.example_P, columns)
        return found_3U

    return ranks.sum_(together(read).to(device)).cpu()


@dataclass(frozen=True)
class Baselines:
    """Predictions by item and user, in the unit of the reward."""

    mean: float
    item_mean_V: Tensor
    item_bias_V: Tensor
    user_mean_U: Tensor
    user_bias_U: Tensor

    @classmethod
    def fit(cls, dataset: Dataset, protocol: str, device: torch.device) -> Baselines:
        """Fitted to the training events of ``protocol``. Collective."""
        sum_V, count_V = item_rewards(dataset, protocol, device)
        mean = float(sum_V.sum() / count_V.sum())
        item_mean_V = torch.where(count_V > 0, sum_V / count_V.clamp(min=1), mean)
        item_bias_V = (sum_V - mean * count_V) / (count_V + ITEM_SHRINKAGE)
        count_U, sum_U, bias_U = _user_rewards(dataset, protocol, device, item_bias_V)
        user_mean_U = torch.where(count_U > 0, sum_U / count_U.clamp(min=1), mean)
        user_bias_U = (sum_U - mean * count_U - bias_U) / (count_U + USER_SHRINKAGE)
        return cls(mean, item_mean_V, item_bias_V, user_mean_U, user_bias_U)

    def predict(self, item_P: Tensor, example_P: Tensor) -> dict[str, Tensor]:
        """Each predictor's rewards of items for users (int64, global row numbers), (P,) float64."""
        item_mean_P = self.item_mean_V[item_P]
        both_P = self.mean + self.item_bias_V[item_P] + self.user_bias_U[example_P]
        found = torch.full_like(item_mean_P, self.mean), item_mean_P, self.user_mean_U[example_P], both_P
        return dict(zip(PREDICTORS, found, strict=True))
