"""RSFT: linear weights, worked out by hand on the policy of conftest.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tests.algorithms.logged import positions

from retilt.algorithms.rsft import RSFT
from retilt.algorithms.weights import WeightTally
from retilt.types import InputError, Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4, mean_weight=15 / 4)


@pytest.mark.parametrize(
    ("normalize", "total", "count"),
    [
        ("none", 5 * 1 + 4 * 2 + 1 * 3 + 5 * 3, 4),
        ("mean", 31 / (15 / 4), 4),
        ("batch", 31 / (15 / 4), 15 / (15 / 4)),
    ],
)
def test_the_weight_is_the_reward(policy, batch, normalize, total, count):
    loss = RSFT(normalize=normalize).loss(policy, batch, STATISTICS)
    assert loss.total.item() == pytest.approx(total * math.log(2))
    assert loss.count.item() == pytest.approx(count)


def test_rewards_up_to_the_baseline_have_no_weight():
    weight_P = RSFT(baseline=3.0).weight(positions([1.0, 3.0, 4.5]), STATISTICS)
    assert weight_P.tolist() == [0, 0, 1.5]


def test_negative_rewards_are_refused_with_the_reason():
    negative = replace(STATISTICS, reward_min=-1.0)
    with pytest.raises(InputError, match=r"smallest is -1.*items that nobody has tried.*algorithm\.baseline=-1"):
        RSFT().check(negative)
    for said in (-1.0, -0.5, 0.5):
        RSFT(baseline=said).check(negative)
    RSFT().check(STATISTICS)


def test_the_published_form_keeps_negative_weights():
    published = RSFT(allow_negative=True, normalize="none")
    published.check(replace(STATISTICS, reward_min=-1.0))
    assert published.weight(positions([-1.0, 1.0]), STATISTICS).tolist() == [-1, 1]
    tally = WeightTally(torch.tensor([-1.0, 1.0]))
    one_P = torch.ones(2)
    tally.add(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]), one_P, one_P)
    published.check_weights(tally)


def test_negative_weights_are_not_divided_by_their_mean():
    with pytest.raises(ValidationError, match="allow_negative=true needs normalize=none, not mean"):
        RSFT(allow_negative=True)


def test_a_baseline_above_every_reward_is_refused():
    tally = WeightTally(torch.tensor([1.0, 5.0]))
    one_P = torch.ones(2)
    tally.add(torch.tensor([1.0, 5.0]), RSFT(baseline=5.0).weight(positions([1.0, 5.0]), STATISTICS), one_P, one_P)
    with pytest.raises(InputError, match=r"every trained position has weight 0; lower algorithm\.baseline=5"):
        RSFT(baseline=5.0).check_weights(tally)
