"""The reward model's loss by hand, on the policy of conftest.py with a head that says what it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from tests.algorithms.logged import positions
from tests.algorithms.tabular import TabularPolicy
from torch import Tensor

from retilt.algorithms.reward_model import RewardModel, reward_model_loss
from retilt.types import Batch, InputError, Likelihood, Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4)


@dataclass
class Answer:
    """π of a tabular policy, and r̂."""

    likelihood: Likelihood
    head_P: Tensor

    def log_prob(self, item: Tensor) -> Tensor:
        return self.likelihood.log_prob(item)


class WithHead:
    """r̂ is 4 for every logged item."""

    def __init__(self, policy: TabularPolicy) -> None:
        self.policy = policy
        self.reward = torch.tensor(4.0, requires_grad=True)

    def __call__(self, batch: Batch) -> Answer:
        return Answer(self.policy(batch), self.reward.expand(len(batch.target_item_P)))


def test_squared_errors_and_imitation_are_summed_over_positions(policy, batch):
    """Rewards 5, 4, 1, 5 and r̂ = 4: errors 1, 0, 3, 1; −log2 π = 1, 2, 3, 3."""
    model = WithHead(policy)
    loss = RewardModel(imitation=0.5).loss(model, batch, STATISTICS)
    assert loss.total.item() == pytest.approx(1 + 9 + 1 + 0.5 * 9 * math.log(2))
    assert loss.count.item() == 4
    assert {name: each.item() for name, each in loss.metrics.items()} == {
        "mse": pytest.approx(11),
        "mae": pytest.approx(5),
        "predicted_reward": pytest.approx(16),
        "nll": pytest.approx(9 * math.log(2)),
        "positions": 4,
    }
    loss.total.backward()
    assert model.reward.grad.item() == pytest.approx(2 * (-1 + 0 + 3 - 1))


def test_without_imitation_the_softmax_is_not_asked(policy, batch):
    model = WithHead(policy)
    loss = RewardModel(imitation=0.0).loss(model, batch, STATISTICS)
    loss.total.backward()
    assert policy.logits.grad is None
    assert "nll" not in loss.metrics


def test_a_shift_and_a_scale_of_reward_and_prediction_scale_the_loss():
    reward_P, predicted_P = torch.tensor([5.0, 4.0, 1.0]), torch.tensor([4.0, 4.5, 2.0])
    one = reward_model_loss(predicted_P, reward_P, None, 0.0).total
    other = reward_model_loss(10 * predicted_P + 3, 10 * reward_P + 3, None, 0.0).total
    assert other.item() == pytest.approx(100 * one.item())


def test_users_are_shared_out_by_a_hash(policy, batch):
    example = torch.arange(100_000)
    first, rest = RewardModel(users=[0.0, 0.3]), RewardModel(users=[0.3, 1.0])
    assert torch.equal(first.chosen(example), ~rest.chosen(example))
    assert first.chosen(example).double().mean().item() == pytest.approx(0.3, abs=0.001)
    assert first.chosen(example[1::2]).double().mean().item() == pytest.approx(0.3, abs=0.001)
    users = list(range(8))
    mine = first.weight(positions([1.0] * 8, users), STATISTICS)
    assert mine.tolist() == first.chosen(torch.tensor(users)).double().tolist()
    only = [user for user in (0, 1) if first.chosen(torch.tensor([user]))]
    assert only == [0]
    loss = first.loss(WithHead(policy), batch, STATISTICS)
    assert loss.count.item() == loss.metrics["positions"].item() == 3  # the first user's


def test_a_constant_reward_and_a_share_that_is_none_are_refused():
    constant = Statistics(positions=4, reward_min=3.0, reward_max=3.0, reward_mean=3.0)
    with pytest.raises(InputError, match="every training reward is 3: a reward model has nothing to learn from"):
        RewardModel().check(constant)
    RewardModel().check(STATISTICS)
    for users in ([0.5, 0.5], [0.0, 1.5], [0.5]):
        with pytest.raises(ValueError, match="a share of users is"):
            RewardModel(users=users)


def test_an_empty_share_has_a_loss_of_zero_that_can_be_differentiated(policy, empty_share):
    loss = RewardModel().loss(WithHead(policy), empty_share, STATISTICS)
    loss.total.backward()
    assert (loss.total.item(), loss.count.item()) == (0, 0)
