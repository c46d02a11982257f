"""Exp-RSFT: exponential weights, worked out by hand on the policy of conftest.py, the limits and symmetries of λ."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from retilt.algorithms.bc import BC
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.top_rated import TopRated
from retilt.algorithms.weights import WeightTally
from retilt.types import InputError, Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4)
HALVING = 1 / math.log(2)
"""With this λ one reward less halves the weight: rewards 5, 4, 1, 5 weigh 1, 1/2, 1/16, 1."""


def with_mean_weight(algorithm, batch, statistics):
    """Statistics as a run fits them: the mean weight over the trained positions."""
    weight_P = algorithm.weight(batch.target_reward_P, statistics)
    return replace(statistics, mean_weight=weight_P.double().mean().item())


def loss_and_gradient(algorithm, policy, batch, statistics):
    policy.zero_grad()
    loss = algorithm.loss(policy, batch, with_mean_weight(algorithm, batch, statistics))
    mean = loss.total / loss.count
    mean.backward()
    return mean.detach(), policy.logits.grad[:, 1:].clone()


@pytest.mark.parametrize(
    ("normalize", "total", "count"),
    [
        ("none", 32 * 1 + 16 * 2 + 2 * 3 + 32 * 3, 4),
        ("mean", (1 + 1 + 3 / 16 + 3) / (41 / 64), 4),
        ("batch", (1 + 1 + 3 / 16 + 3) / (41 / 64), (41 / 16) / (41 / 64)),
    ],
)
def test_the_weight_is_the_exponential_of_the_reward(policy, batch, normalize, total, count):
    algorithm = ExpRSFT(temperature=HALVING, normalize=normalize)
    loss = algorithm.loss(policy, batch, with_mean_weight(algorithm, batch, STATISTICS))
    assert loss.total.item() == pytest.approx(total * math.log(2))
    assert loss.count.item() == pytest.approx(count)
    assert loss.metrics["nll"].item() == pytest.approx(9 * math.log(2))
    assert loss.metrics["weighted_nll"].item() == pytest.approx(total * math.log(2))


def test_batch_normalisation_does_not_depend_on_the_fitted_mean(policy, batch):
    algorithm = ExpRSFT(temperature=HALVING, normalize="batch")
    loss = algorithm.loss(policy, batch, replace(STATISTICS, mean_weight=7.0))
    assert (loss.total / loss.count).item() == pytest.approx(83 / 41 * math.log(2))


def test_batch_normalisation_adds_up_over_ranks(policy, batch):
    """Σ totals ÷ Σ counts of the two users apart is the loss of both together."""
    algorithm = ExpRSFT(temperature=HALVING, normalize="batch")
    parts = []
    for user in range(2):
        share = replace(batch, **{name: x[user : user + 1] for name, x in vars(batch).items() if x is not None})
        parts.append(algorithm.loss(policy, share, STATISTICS))
    total, count = sum(part.total for part in parts), sum(part.count for part in parts)
    assert (total / count).item() == pytest.approx(83 / 41 * math.log(2))


def test_a_huge_temperature_is_bc(policy, batch):
    """Weights between e^(−4/λ) and 1 differ by at most 4/λ = 4e-6, and so does each mean over positions of |g| ≤ 1."""
    loss, gradient = loss_and_gradient(ExpRSFT(temperature=1e6), policy, batch, STATISTICS)
    expected_loss, expected_gradient = loss_and_gradient(BC(), policy, batch, STATISTICS)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=4e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 1e-300])
def test_a_vanishing_temperature_is_top_rated(policy, batch, temperature):
    loss, gradient = loss_and_gradient(ExpRSFT(temperature=temperature), policy, batch, STATISTICS)
    top = replace(STATISTICS, threshold=5.0)
    expected_loss, expected_gradient = loss_and_gradient(TopRated(), policy, batch, top)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("normalize", ["mean", "batch"])
@pytest.mark.parametrize("shift", [-3.0, 1.0, 64.0])
def test_a_constant_added_to_the_rewards_changes_nothing(policy, batch, normalize, shift):
    algorithm = ExpRSFT(temperature=0.5, normalize=normalize)
    shifted = replace(batch, reward_BT=batch.reward_BT + shift)
    loss, gradient = loss_and_gradient(algorithm, policy, shifted, replace(STATISTICS, reward_max=5.0 + shift))
    expected_loss, expected_gradient = loss_and_gradient(algorithm, policy, batch, STATISTICS)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("normalize", ["mean", "batch", "none"])
@pytest.mark.parametrize("scale", [1 / 8, 2.0, 1024.0])
def test_scaling_rewards_and_temperature_together_changes_nothing(policy, batch, normalize, scale):
    scaled = replace(batch, reward_BT=batch.reward_BT * scale)
    statistics = replace(STATISTICS, reward_max=5.0 * scale)
    loss, gradient = loss_and_gradient(
        ExpRSFT(temperature=0.5 * scale, normalize=normalize), policy, scaled, statistics
    )
    original = ExpRSFT(temperature=0.5, normalize=normalize)
    expected_loss, expected_gradient = loss_and_gradient(original, policy, batch, STATISTICS)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan"), float("inf"), "0.5", True])
def test_a_temperature_must_be_a_positive_number(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        ExpRSFT(temperature=temperature)


def test_algorithm_1_to_the_letter_is_refused_where_it_overflows():
    # exp(5/.05) = e^100, and float32 ends at e^88.7.
    with pytest.raises(InputError, match=r"temperature=0\.05 overflows.*exp\(100\).*algorithm\.normalize=mean"):
        ExpRSFT(temperature=0.05, normalize="none").check(STATISTICS)
    ExpRSFT(temperature=0.05).check(STATISTICS)
    ExpRSFT(temperature=0.5, normalize="none").check(STATISTICS)


def test_an_effective_sample_of_under_one_percent_is_refused_unless_asked_for():
    """One reward of 10 among 999 of 0 at λ = .5: ESS/n = 1/1000."""
    reward_P = torch.cat([torch.full((1,), 10.0), torch.zeros(999)])
    statistics = Statistics(positions=1000, reward_min=0.0, reward_max=10.0, reward_mean=0.01)
    tally = WeightTally(torch.tensor([0.0, 10.0]))
    one_P = torch.ones(1000)
    tally.add(reward_P, ExpRSFT().weight(reward_P, statistics), one_P, one_P)
    with pytest.raises(InputError, match=r"0\.100% of 1,000 positions.*raise algorithm\.temperature=0\.5"):
        ExpRSFT().check_weights(tally)
    ExpRSFT(allow_low_ess=True).check_weights(tally)
