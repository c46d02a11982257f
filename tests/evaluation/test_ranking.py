"""Which targets are counted, in which group and as what: a policy with known ranks on hand-made batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest
import torch

from retilt.evaluation.ranking import tally
from retilt.types import Batch, ExactPolicy

TRAIN_COUNTS = torch.tensor([0, 5, 5, 5, 0, 5])
"""Item 4 was never trained on."""


@dataclass
class RankIsItem:
    """Ranks every target at its own index, and notes what it was asked."""

    asked: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)

    def __call__(self, batch: Batch) -> RankIsItem:
        raise AssertionError("evaluation is exact")

    def exact(self, batch: Batch) -> RankIsItem:
        return self

    def log_prob(self, item_P: torch.Tensor) -> torch.Tensor:
        raise AssertionError("evaluation needs ranks only")

    def ranks(self, item_P: torch.Tensor, seen_item: torch.Tensor, seen_length_P: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.asked.append((item_P.tolist(), seen_item.tolist(), seen_length_P.tolist()))
        return item_P.clone()


def batch(items: list[list[int]], targets: int, examples: list[int], **more: torch.Tensor) -> Batch:
    """Equally long sequences whose last ``targets`` events are targets; the reward is half the item."""
    item_BT = torch.tensor(items, dtype=torch.int64).reshape(len(items), len(items[0]) if items else 2)
    width = item_BT.shape[1]
    supervised_BT = (torch.arange(width) >= width - targets).expand(item_BT.shape).clone()
    count = int(supervised_BT.sum())
    return Batch(
        item_BT=item_BT,
        reward_BT=item_BT.float() / 2 + 0.1,
        time_BT=torch.arange(width).expand(item_BT.shape),
        supervised_BT=supervised_BT,
        length_B=torch.full((len(items),), width),
        example_B=torch.tensor(examples, dtype=torch.int64),
        **{"untied_P": torch.ones(count, dtype=torch.bool), **more},
    )


def evaluate(policy: RankIsItem, batches: list[Batch], min_reward: float | None = None):
    return tally(
        cast(ExactPolicy, policy), batches, train_counts=TRAIN_COUNTS, min_reward=min_reward, replicates=20, seed=0
    )


def test_groups_hold_what_they_say() -> None:
    untied_P = torch.tensor([True, False, True, True])
    found = evaluate(RankIsItem(), [batch([[1, 1, 2], [1, 3, 5]], 2, [8, 9], untied_P=untied_P)], min_reward=1.6)
    assert found.groups == ("all", "high_reward", "untied")
    assert [found.count("n", group) for group in found.groups] == [4, 2, 3]
    assert found.count("users", "high_reward") == 1
    assert found.means("all")["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 5) / 4)
    assert found.means("high_reward")["mrr"] == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert found.means("untied")["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 5) / 3)


def test_a_threshold_meets_rewards_in_their_own_precision() -> None:
    # float32(1.1) < 1.1: the target of item 2 has the reward 1.1 as stored.
    found = evaluate(RankIsItem(), [batch([[1, 2]], 1, [0])], min_reward=1.1)
    assert found.count("n", "high_reward") == 1


def test_without_a_threshold_there_is_no_high_reward_group() -> None:
    assert evaluate(RankIsItem(), [batch([[1, 2]], 1, [0])]).groups == ("all", "untied")


def test_targets_never_trained_on_are_misses() -> None:
    found = evaluate(RankIsItem(), [batch([[1, 4, 2]], 2, [0])])
    assert found.means()["hr@10"] == 1 / 2
    assert found.means()["mrr"] == (0 + 1 / 2) / 2
    assert found.share_never_trained() == 1 / 2


def test_seen_items_reach_the_policy_and_may_be_absent() -> None:
    policy = RankIsItem()
    seen = {"seen_item": torch.tensor([1, 1, 2]), "seen_length_P": torch.tensor([1, 2])}
    evaluate(policy, [batch([[1, 2, 3]], 2, [0], **seen), batch([[1, 2, 3]], 2, [1])])
    assert policy.asked == [([2, 3], [1, 1, 2], [1, 2]), ([2, 3], [], [0, 0])]


def test_an_empty_share_still_asks_the_policy() -> None:
    policy = RankIsItem()
    empty = batch([], 1, [])
    found = evaluate(policy, [empty, empty], min_reward=4.5)
    assert len(policy.asked) == 2
    assert found.count("n") == 0
    assert found.means()["mrr"] is None
