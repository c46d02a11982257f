"""Exp-RSFT: exponential weights, worked out by hand on the policy of conftest.py, the limits and symmetries of λ."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.algorithms.logged import positions

from retilt.algorithms.bc import BC
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.rsft import RSFT
from retilt.algorithms.survey import Survey
from retilt.algorithms.temperatures import Histogram
from retilt.algorithms.top_rated import TopRated
from retilt.algorithms.weights import WeightTally, kish_ratio
from retilt.types import InputError, Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4)
ML_1M = {"levels": [[1.0, 56_174], [2.0, 107_557], [3.0, 261_197], [4.0, 348_971], [5.0, 226_310]]}
HALVING = 1 / math.log(2)
"""With this λ one reward less halves the weight: rewards 5, 4, 1, 5 weigh 1, 1/2, 1/16, 1."""


def with_mean_weight(algorithm, batch, statistics):
    """Statistics as a run fits them: the mean weight over the trained positions."""
    weight_P = algorithm.weight(batch.positions, statistics)
    return replace(statistics, mean_weight=weight_P.double().mean().item())


def surveyed(algorithm, batch, statistics=STATISTICS):
    """Statistics after both passes over the batch."""
    survey = Survey()
    survey.add(*algorithm.survey(batch.positions, statistics))
    found = replace(algorithm.surveyed(survey, statistics), positions=len(batch.target_item_P))
    return with_mean_weight(algorithm, batch, found)


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
    tally.add(reward_P, ExpRSFT().weight(positions(reward_P), statistics), one_P, one_P)
    with pytest.raises(InputError, match=r"0\.100% of 1,000 positions.*raise algorithm\.temperature=0\.5"):
        ExpRSFT().check_weights(tally)
    ExpRSFT(allow_low_ess=True).check_weights(tally)


# The two users' trained rewards are 5, 4, 1 and 5: returns 10 and 5, so R̃ = 1 and −1; means 10/3 and 5, R̃ = −1 and 1.
@pytest.mark.parametrize(("returns", "first", "second"), [("sum", 1.0, 1 / 4), ("mean", 1 / 4, 1.0)])
@pytest.mark.parametrize("normalize", ["none", "mean", "batch"])
def test_a_trajectory_is_weighted_by_its_standardised_return(policy, batch, normalize, returns, first, second):
    """Equation 20: Σ_τ w_τ · Σ_t −log π ÷ trajectories. −log2 π is 1 + 2 + 3 of the first user and 3 of the second."""
    algorithm = ExpRSFT(level="trajectory", returns=returns, temperature=HALVING, normalize=normalize)
    statistics = surveyed(algorithm, batch)
    assert (statistics.trajectories, statistics.return_sd) == (2, pytest.approx(2.5 if returns == "sum" else 5 / 6))
    loss = algorithm.loss(policy, batch, statistics)
    scale = {"none": 2.0, "mean": 1 / statistics.mean_weight, "batch": 1 / statistics.mean_weight}[normalize]
    assert loss.total.item() == pytest.approx(scale * (6 * first + 3 * second) * math.log(2))
    weights = scale * (3 * first + second) if normalize == "batch" else 4
    assert loss.count.item() == pytest.approx(weights / 2)


def test_a_batch_of_long_trajectories_counts_as_much_as_one_of_short_ones(policy, batch):
    """Σ totals ÷ Σ counts is equation 20 however trajectories are dealt to batches, and equal positions count alike."""
    algorithm = ExpRSFT(level="trajectory", temperature=HALVING)
    statistics = surveyed(algorithm, batch)
    whole = algorithm.loss(policy, batch, statistics)
    parts = [algorithm.loss(policy, batch.select(torch.tensor([user])), statistics) for user in range(2)]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item())
    assert [part.count.item() for part in parts] == [1.5, 0.5]


def test_standardising_returns_takes_their_unit_away(batch):
    """Also a constant added to the rewards, of which a mean is free; a sum would then go with the length."""
    algorithm = ExpRSFT(level="trajectory", returns="mean", temperature=0.7)
    scaled = replace(batch, reward_BT=batch.reward_BT * 100.0 + 2.0)
    expected = algorithm.weight(batch.positions, surveyed(algorithm, batch))
    torch.testing.assert_close(algorithm.weight(scaled.positions, surveyed(algorithm, scaled)), expected)


def test_equal_returns_are_nothing_to_learn_from(batch):
    level = replace(batch, reward_BT=torch.tensor([[3.0, 1.0, 2.0, 2.0], [2.0, 5.0, 0.0, 0.0]]))
    with pytest.raises(InputError, match=r"every trajectory has the return 5, .*level=trajectory has nothing to learn"):
        surveyed(ExpRSFT(level="trajectory"), level)


def test_the_report_says_how_returns_go_with_length():
    survey = Survey()
    survey.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10, 30, 20]))
    report = survey.report()
    assert report == {
        "trajectories": 3,
        "mean": 2,
        "sd": pytest.approx(math.sqrt(2 / 3)),
        "correlation_length": pytest.approx(0.5),
    }
    constant = Survey()
    constant.add(torch.tensor([1.0, 2.0]), torch.tensor([4, 4]))
    assert constant.report()["correlation_length"] is None


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        # 5, 4, 1 of the first user are 5/3, 2/3, −7/3 from the mean; the second's only one is its own mean.
        ({"rewards": "user_centred"}, [1, 1 / 2, 1 / 16, 2 ** (-5 / 3)]),
        # 5 against the mean of 2⁴ and 2¹, and so on; a user's only position counts as average.
        ({"context_weight": "equal"}, [32 / 9, 16 / 17, 2 / 24, 1]),
        ({"rewards": "user_centred", "context_weight": "equal"}, [32 / 9, 16 / 17, 2 / 24, 1]),
    ],
)
@pytest.mark.parametrize("normalize", ["none", "mean"])
def test_weights_by_the_user_s_own_events(batch, normalize, settings, weight):
    algorithm = ExpRSFT(temperature=HALVING, normalize=normalize, **settings)
    found = algorithm.weight(batch.positions, surveyed(algorithm, batch))
    relative = found / found[0]
    assert relative.tolist() == pytest.approx([each / weight[0] for each in weight])
    if normalize == "mean":
        assert found.max() == 1
    elif "context_weight" in settings:
        assert found.tolist() == pytest.approx(weight)


def test_equal_contexts_have_equal_weight_whatever_the_user_s_mean(batch):
    """One star more on all of a user's events changes nothing; under the paper's weights it is a factor e^(1/λ)."""
    generous = replace(batch, reward_BT=batch.reward_BT + torch.tensor([[1.0], [0.0]]))
    for settings, same in (({"context_weight": "equal"}, True), ({"rewards": "user_centred"}, True), ({}, False)):
        algorithm = ExpRSFT(temperature=HALVING, normalize="none", **settings)
        before = algorithm.weight(batch.positions, surveyed(algorithm, batch))
        after = algorithm.weight(generous.positions, surveyed(algorithm, generous, replace(STATISTICS, reward_max=6.0)))
        factor = torch.tensor([1.0 if same else 2.0] * 3 + [1.0])
        torch.testing.assert_close(after, before * factor)


@pytest.mark.parametrize(("rewards", "unit"), [("standardised", 1.3), ("rank", 4.0)])
def test_a_transform_that_is_linear_here_changes_the_unit_of_the_temperature(policy, batch, rewards, unit):
    """One SD is 1.3 stars; ranks of continuous rewards, uniform on 1 … 5: one rank is 4 stars."""
    statistics = replace(STATISTICS, reward_sd=1.3, reward_ranks=[[1.0, 0.0], [5.0, 1.0]])
    loss, gradient = loss_and_gradient(ExpRSFT(temperature=0.5, rewards=rewards), policy, batch, statistics)
    expected_loss, expected_gradient = loss_and_gradient(ExpRSFT(temperature=0.5 * unit), policy, batch, statistics)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rewards": "user_centred"}, "the return 0"),
        ({"context_weight": "equal"}, "a user has one; use context_weight=paper"),
    ],
)
def test_what_makes_no_sense_of_trajectories_is_refused(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        ExpRSFT(level="trajectory", **settings)


@pytest.mark.parametrize(
    "settings", [{"level": "trajectory"}, {"rewards": "user_centred"}, {"context_weight": "equal"}]
)
def test_an_overflow_of_weights_by_user_is_refused_when_the_largest_is_known(batch, settings):
    algorithm = ExpRSFT(temperature=0.01, normalize="none", **settings)
    algorithm.check(STATISTICS)
    with pytest.raises(InputError, match=r"temperature=0\.01 overflows: the largest weight is exp\([1-4]\d\d(\.\d)?\)"):
        algorithm.check(surveyed(algorithm, batch))
    normalised = algorithm.model_copy(update={"normalize": "mean"})
    normalised.check(surveyed(normalised, batch))


@pytest.mark.parametrize("algorithm", [ExpRSFT(), ExpRSFT(level="trajectory"), RSFT(), TopRated()])
def test_a_constant_reward_is_refused(algorithm):
    with pytest.raises(InputError, match=r"every training event has the reward 4, so \w+ has nothing to learn"):
        algorithm.check(replace(STATISTICS, reward_min=4.0, reward_max=4.0))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0, 50.0])
def test_the_temperature_of_an_effective_sample_size_is_found_again(temperature):
    """ML-1M's ratings; the effective sample size of a λ, and the λ of that."""
    reward_P = torch.cat([torch.full((int(count),), value) for value, count in ML_1M["levels"]])
    tally = WeightTally.of(ML_1M)
    one_P = torch.ones_like(reward_P)
    tally.add(reward_P, ExpRSFT(temperature=temperature).weight(positions(reward_P), STATISTICS), one_P, one_P)
    # Weights are float32 and near 1 for a large λ, where the effective sample size hardly depends on it.
    assert Histogram.of(ML_1M).temperature(tally.ess_ratio) == pytest.approx(temperature, rel=1e-3)


def test_the_temperature_of_rsft_s_effective_sample_size():
    """The control of equal strength: on ML-1M weights linear in the rating are as mild as λ between 3 and 4."""
    value_L, count_L = np.array(ML_1M["levels"]).T
    ess_ratio = kish_ratio(value_L, count_L)
    assert ess_ratio == pytest.approx(0.911, abs=5e-4)
    assert 3 < Histogram.of(ML_1M).temperature(ess_ratio) < 4


def test_the_temperature_for_continuous_rewards():
    """Uniform on 0 … 1: ESS = tanh(1/(2λ)) · 2λ; at λ = .1 that is .19998."""
    uniform = {"levels": None, "events": 1000, "quantiles": [i / 1000 for i in range(1001)]}
    assert Histogram.of(uniform).temperature(0.2 * math.tanh(5.0)) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("wanted", [0.1, 226_310 / 1_000_209, 1.0])
def test_an_effective_sample_size_out_of_reach_is_refused(wanted):
    with pytest.raises(InputError, match=r"above 0\.2263 and below 1"):
        Histogram.of(ML_1M).temperature(wanted)
