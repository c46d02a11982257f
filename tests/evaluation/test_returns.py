"""Which trajectories have a high return: by hand, and alike on any number of ranks."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tests.data import small_dataset
from tests.evaluation.test_ranking import TRAIN_COUNTS, RankIsItem, batch
from tests.spawning import Ranks

from retilt.data.dataset import Dataset
from retilt.evaluation import returns, wording
from retilt.evaluation.groups import WITHIN, Division
from retilt.evaluation.ranking import tally
from retilt.types import ExactPolicy

QUANTILES = (0.1, 0.5, 0.75)


def bounds(data: str, part: str) -> list[float]:
    return [returns.bound(Dataset.open(data), part, each) for each in QUANTILES]  # type: ignore[arg-type]


def test_the_bound_is_a_quantile_of_the_returns_before_the_part(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ten users of 8 events, k = 2: user u has the rewards 100, 100, then u, u + 1 and four times u + 2."""
    users = []
    for user in range(10):
        rewards = [100.0, 100.0, user, user + 1.0, *[user + 2.0] * 4]
        users.append([(1 + (user + n) % 12, reward, n) for n, reward in enumerate(rewards)])
    data = small_dataset.write(str(tmp_path_factory.mktemp("returns")), users, 13, lanes=2, shards=[[5], [5]])
    assert bounds(data, "validation") == [0.5, 4.5, 7.5]  # the smallest that so large a share of the users reach
    assert bounds(data, "test") == [2.0, 6.0, 9.0]


def test_two_ranks_find_the_same_bound(data: str, two_ranks: Ranks) -> None:
    assert two_ranks(bounds, data, "test") == [bounds(data, "test")] * 2


def test_all_targets_of_a_user_of_a_high_return_belong_to_it_and_are_divided() -> None:
    """Rewards are item/2 + .1: returns 1.1 (items 1 and 3), 2.1 (3 and 5) and 1.6 (5 and 1), of which 1.5 is enough."""
    seen = batch([[1, 1, 3], [1, 3, 5], [1, 5, 1]], 2, [4, 7, 9], earlier_B=torch.tensor([0, 0, 0]))
    found = tally(
        cast(ExactPolicy, RankIsItem()), [seen], train_counts=TRAIN_COUNTS, min_reward=2.0, replicates=20, seed=0,
        high_return=1.5, division=Division((0, 1), (0, 9), TRAIN_COUNTS),
    )  # fmt: skip
    assert found.groups[:4] == ("all", "high_reward", "untied", "high_return")
    assert (found.count("n", "high_return"), found.count("users", "high_return")) == (4, 2)
    assert found.means("high_return")["mrr"] == pytest.approx((1 / 3 + 1 / 5 + 1 / 5 + 1) / 4)
    assert found.count("n", f"{WITHIN}untied") == 4
    report = {"policies": {"bc": dict.fromkeys(found.groups)}}
    assert wording.headline(report) == "high_return"
