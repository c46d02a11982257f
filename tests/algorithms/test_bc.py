"""BC: the plain likelihood, worked out by hand on the policy of conftest.py."""

from __future__ import annotations

import math

import pytest
import torch
from tests.algorithms.logged import positions

from retilt.algorithms.bc import BC
from retilt.types import Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4)


def test_the_loss_is_a_sum_over_positions_and_their_count(policy, batch):
    loss = BC().loss(policy, batch, STATISTICS)
    assert loss.total.item() == pytest.approx((1 + 2 + 3 + 3) * math.log(2))
    assert loss.count.item() == 4
    assert not loss.count.requires_grad
    assert {name: value.item() for name, value in loss.metrics.items()} == {
        "nll": pytest.approx(9 * math.log(2)),
        "weighted_nll": pytest.approx(9 * math.log(2)),
        "weight": 4,
    }


def test_the_gradient_is_probability_minus_one_hot(policy, batch):
    loss = BC().loss(policy, batch, STATISTICS)
    loss.total.backward()
    # Item 4 was chosen once after item 4: gradient π − 1[a = 4].
    expected = torch.tensor([0, 1 / 2, 1 / 4, 1 / 8, 1 / 8 - 1])
    torch.testing.assert_close(policy.logits.grad[4], expected)


def test_every_weight_is_one():
    assert BC().weight(positions([1.0, 5.0]), STATISTICS).tolist() == [1, 1]


def test_an_empty_share_has_a_loss_of_zero_that_can_be_differentiated(policy, empty_share):
    loss = BC().loss(policy, empty_share, STATISTICS)
    loss.total.backward()
    assert loss.total.item() == 0
    assert loss.count.item() == 0
    assert not policy.logits.grad.any()
