"""What is tried at a batch's positions: which positions, which draws, and that the first pass finds what drew them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.data.small_dataset import MODEL

from retilt import ranks
from retilt.algorithms.dpo import DPO
from retilt.algorithms.ppo import PPO
from retilt.config import Placement
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import train_batches
from retilt.models.hstu import HSTU
from retilt.models.policy import CataloguePolicy
from retilt.training.assemble import Blueprint, assemble
from retilt.training.explore import chosen, explore
from retilt.training.step import take_step
from retilt.types import Batch, Companions, Explored, Statistics

STATISTICS = Statistics(positions=1, reward_min=1.0, reward_max=5.0, reward_mean=3.0)


class ItemReward:
    """Half the number of the item."""

    def score(self, batch: Batch, item_PK: torch.Tensor) -> torch.Tensor:
        return item_PK / 2


def assembled(dataset: Dataset, placement: Placement, seed: int = 0) -> tuple[CataloguePolicy, torch.optim.Adam]:
    ranks.single()
    blueprint = Blueprint(
        HSTU.model_validate(MODEL), dataset.items, placement, "row_wise_adagrad", 1e-2, 1e-2, 0.3, seed, head="value"
    )
    return assemble(blueprint, dataset.active(), torch.device("cpu"))


def first_batch(dataset: Dataset) -> Batch:
    """Some thirty users in one share."""
    plan = Plan.of(dataset, 30, 0)
    return next(iter(train_batches(dataset, plan, Cursor(0, 0), "select", 20, 0, 1)))


@pytest.fixture(scope="module", params=["replicated", "row_wise"])
def tried(request: pytest.FixtureRequest, data: str) -> Explored:
    dataset = Dataset.open(data)
    policy, _ = assembled(dataset, request.param)
    reference, _ = assembled(dataset, request.param, seed=1)
    frozen = Companions(reference.train(0, dropout=False), ItemReward())
    return explore(policy.train(7, dropout=False), frozen, PPO(contexts=4, draws=8), first_batch(dataset))


def test_each_user_is_tried_at_some_positions(data: str, tried: Explored):
    batch = first_batch(Dataset.open(data))
    wanted_B = batch.supervised_BT.sum(1).clamp(max=4)
    assert tried.supervised_BT.sum(1).tolist() == wanted_B.tolist()
    assert not (tried.supervised_BT & ~batch.supervised_BT).any()
    assert int(wanted_B.max()) == 4


def test_every_position_is_as_likely_to_be_chosen():
    """One user of five targets and 2,000 keys of each: two of five, to four standard deviations."""
    users = 2000
    supervised_BT = torch.tensor([[False, True, True, True, True, True, False]]).repeat(users, 1)
    item_BT = torch.ones(users, 7, dtype=torch.int64)
    zeros_B = torch.zeros(users, dtype=torch.int64)
    batch = Batch(item_BT, item_BT.float(), item_BT, supervised_BT, zeros_B, zeros_B)
    rng = np.random.default_rng(0)
    key_P = torch.from_numpy(rng.integers(-(2**31), 2**31, 5 * users, dtype=np.int64)).int()
    found = chosen(batch, key_P, 2)
    assert found.sum(1).tolist() == [2] * users
    assert (found.double().mean(0)[1:6] - 0.4).abs().max() < 4 * (0.4 * 0.6 / users) ** 0.5


def test_nothing_is_drawn_that_the_history_has_or_the_catalogue_has_not(data: str, tried: Explored):
    assert tried.item_PK.shape == (len(tried.target_item_P), 8)
    active = Dataset.open(data).active()
    assert active[tried.item_PK].all()
    user_P, place_P = tried.supervised_BT.nonzero(as_tuple=True)
    for user, place, items in zip(user_P, place_P, tried.item_PK, strict=True):
        assert not set(items.tolist()) & set(tried.item_BT[user, :place].tolist())
    assert len(tried.item_PK.unique()) > 30


def test_what_is_said_of_the_draws(tried: Explored):
    assert torch.equal(tried.reward_PK, tried.item_PK / 2)
    assert tried.value_P is not None
    # A fresh value head says the mean of the rewards, of which this one was not told.
    assert not tried.value_P.any()
    kept: Any = (tried.log_old_PK, tried.log_reference_PK, tried.reward_PK, tried.value_P)
    assert not any(each.requires_grad for each in kept)
    assert (tried.log_old_PK - tried.log_reference_PK).abs().max() > 0.01


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
@pytest.mark.parametrize("passes", [1, 4])
def test_ratios_are_one_on_the_first_pass_and_move_after_it(data: str, placement: Placement, passes: int):
    """To the bit, though the policy has dropout; metrics are summed over the passes."""
    dataset = Dataset.open(data)
    (policy, dense), (reference, _) = assembled(dataset, placement), assembled(dataset, placement)
    frozen = Companions(reference.train(0, dropout=False), ItemReward())
    batch, algorithm = first_batch(dataset), PPO(passes=passes, temperature=0.1)
    found = take_step(policy, dense, algorithm, batch, STATISTICS, 0, {}, lambda loss: False, frozen)
    assert found.outcome == "taken"
    positions = int(batch.supervised_BT.sum(1).clamp(max=16).sum())
    assert found.sums["positions"] == found.count == passes * positions
    moved = abs(found.sums["mean_ratio"] - found.count) + found.sums["approximate_kl"] + found.sums["clip_fraction"]
    assert (moved == 0) == (passes == 1)
    assert found.sums["reward_model_score"] > 0


def test_a_pass_that_is_not_finite_ends_the_step(data: str):
    """A learning rate of 1e30 leaves parameters that no second pass can use; the third and fourth are not made."""
    dataset = Dataset.open(data)
    (policy, dense), (reference, _) = assembled(dataset, "replicated"), assembled(dataset, "replicated")
    dense.param_groups[0]["lr"] = 1e30
    losses = []

    def seen(loss: float) -> bool:
        losses.append(loss)
        return False

    frozen = Companions(reference.train(0, dropout=False), ItemReward())
    batch = first_batch(dataset)
    found = take_step(policy, dense, PPO(), batch, STATISTICS, 0, {"stop": True}, seen, frozen)
    assert found.outcome == "loss"
    assert found.raised == {"stop": 1}
    assert len(losses) == 1


def test_a_loss_that_jumps_changes_nothing(data: str):
    dataset = Dataset.open(data)
    (policy, dense), (reference, _) = assembled(dataset, "row_wise"), assembled(dataset, "row_wise")
    before = [each.clone() for each in (*policy.network.parameters(), policy.table.rows)]
    frozen = Companions(reference.train(0, dropout=False), ItemReward())
    found = take_step(policy, dense, DPO(), first_batch(dataset), STATISTICS, 0, {}, lambda loss: True, frozen)
    assert found.outcome == "spike"
    after = (*policy.network.parameters(), policy.table.rows)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
