"""A reward model that is asked and not trained (types.RewardModel)."""

from __future__ import annotations

from torch import Tensor

from retilt.models.heads import RewardHead
from retilt.models.policy import CataloguePolicy
from retilt.types import Batch


class FrozenRewardModel:
    """r̂(s, a): a trunk, a table and a reward head whose parameters stay as they are."""

    def __init__(self, policy: CataloguePolicy) -> None:
        """``policy`` has a reward head; its distribution is not used."""
        assert isinstance(policy.network.head, RewardHead)
        self._policy = policy.train(0, dropout=False)

    def score(self, batch: Batch, item_PK: Tensor) -> Tensor:
        """Predicted rewards (P, K), float32, in the data's unit and as they are: nothing keeps them in its range.

        For each supervised position of the batch K items, scored as if each were chosen at the time of the position's
        target, after the events before that; neither the target nor another of the K has any part in it. Collective
        where the table is sharded. Memory: hidden states of positions × items, scores of one tile.
        """
        return self._policy.score(batch, item_PK)
