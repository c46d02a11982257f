"""The grid of λ: equal steps of the effective sample size in any unit, what trains alike, what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from retilt.algorithms.temperatures import ROUNDING, SAME, Histogram, auto, check, merge, points
from retilt.data.statistics import Rewards
from retilt.types import InputError

ML_1M = {"levels": [[1.0, 56_174], [2.0, 107_557], [3.0, 261_197], [4.0, 348_971], [5.0, 226_310]]}
"""Ratings of MovieLens 1M; 22.6% are the largest."""
GENEROUS = {"levels": [[1.0, 10], [2.0, 10], [3.0, 30], [4.0, 350], [5.0, 600]]}
"""60% are the largest."""
COIN = {"levels": [[0.0, 50], [1.0, 50]]}
HALVING = 1 / math.log(2)
"""λ at which one reward less halves the weight."""


def in_another_unit(rewards, factor, shift):
    return {"levels": [[value * factor + shift, count] for value, count in rewards["levels"]]}


def draws(kind, events=50_000):
    """Continuous rewards as float64 of what prepare stores; the tails of the first two are long."""
    rng = np.random.default_rng(0)
    drawn = {
        "lognormal": rng.lognormal(4, 0.5, events),
        "exponential": rng.exponential(1, events),
        "normal": rng.normal(0, 1, events),
        "uniform": rng.random(events),
        "capped": np.minimum(rng.exponential(1, events), 3),
    }
    return drawn[kind].astype(np.float32).astype(np.float64)


def statistics(kind, events=50_000):
    found = Rewards.of(draws(kind, events).astype(np.float32)).summary()
    # Up to 1,024 different rewards have levels, which are exact; here the quantiles are the subject.
    assert found["levels"] is None or events <= 1024
    return {**found, "levels": None}


def test_the_effective_sample_size_of_a_temperature():
    """Halves of weight 1 and 1/2: (3/4)² / (5/8) = .9; shares 2/3 and 1/3, against halves 1/6 apart."""
    histogram = Histogram.of(COIN)
    assert histogram.ess(HALVING) == pytest.approx(0.9)
    assert histogram.distance(HALVING, 1e9) == pytest.approx(1 / 6)
    assert points([HALVING, 1e9], COIN) == [
        {"temperature": HALVING, "ess": pytest.approx(0.9)},
        {"temperature": 1e9, "ess": pytest.approx(1.0)},
    ]


def test_points_of_extreme_temperatures_are_the_ends():
    least, most = points([1e-308, 1e300], ML_1M)
    assert least["ess"] == pytest.approx(226_310 / 1_000_209)
    assert most["ess"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "rewards", [ML_1M, statistics("lognormal"), statistics("capped")], ids=["ml-1m", "lognormal", "capped"]
)
def test_the_grid_has_equal_steps_of_the_effective_sample_size(rewards):
    found = auto(rewards, 8)
    assert found.note is None
    assert found.temperatures == sorted(found.temperatures)
    assert all(each == float(f"{each:.3g}") for each in found.temperatures)
    # Two digits move ESS/n by less than ROUNDING; three move λ by .5% at most.
    ess = [each["ess"] for each in points(found.temperatures, rewards)]
    assert ess == pytest.approx(np.linspace(0.25, 0.95, 8).tolist(), abs=ROUNDING)


def test_three_digits_are_kept_where_two_would_move_the_point():
    """On ML-1M only the point at .65: λ = 1.25 is 1.2 or 1.3 in two digits, which leaves .635 or .665."""
    digits = {each: len(f"{each:g}".replace(".", "").lstrip("0")) for each in auto(ML_1M, 8).temperatures}
    assert [each for each, number in digits.items() if number == 3] == [1.25]
    histogram, exact = Histogram.of(ML_1M), Histogram.of(ML_1M).temperature(0.65)
    assert min(abs(histogram.ess(each) - 0.65) for each in (1.2, 1.3)) > ROUNDING
    assert f"{exact:.3g}" == "1.25"


@pytest.mark.parametrize("events", [900, 1000, 5_000, 200_000])
@pytest.mark.parametrize("kind", ["lognormal", "exponential", "normal", "uniform", "capped"])
def test_quantiles_tell_the_effective_sample_size_of_the_events(kind, events):
    """Against the sum over all events, within .02; within .12 where a few events of a long tail decide it.

    With the largest counted as a thousandth of the events the lognormal's would be wrong by up to .67.
    """
    reward, rewards = draws(kind, events), statistics(kind, events)
    tolerance = {"lognormal": 0.12, "exponential": 0.05}.get(kind, 0.02)
    for each in points(auto(rewards, 5).temperatures, rewards):
        weight = np.exp((reward - reward.max()) / each["temperature"])
        assert weight.sum() ** 2 / (len(reward) * (weight**2).sum()) == pytest.approx(each["ess"], abs=tolerance)


@pytest.mark.parametrize("rewards", [ML_1M, GENEROUS])
def test_the_grid_follows_the_unit_of_the_reward(rewards):
    usual, other = auto(rewards, 8), auto(in_another_unit(rewards, 1000, 7), 8)
    assert other.temperatures == pytest.approx([1000 * each for each in usual.temperatures], rel=1e-12)
    assert other.note == usual.note
    kept, merged = merge([0.5, 0.501, 2.0], rewards)
    other_kept, other_merged = merge([500.0, 501.0, 2000.0], in_another_unit(rewards, 1000, 7))
    assert other_kept == [1000 * each for each in kept] == [501.0, 2000.0]
    assert [each["ess"] for each in other_merged] == pytest.approx([each["ess"] for each in merged])


def test_the_share_of_the_largest_reward_is_where_the_grid_begins():
    """60% of the events have the largest: the grid begins at .6 + 3% of .4 = .612, and top_rated is not repeated."""
    found = auto(GENEROUS, 8)
    assert found.note is not None
    assert "60.0% of the training events" in found.note
    assert "begins at 61.2% instead of 25.0%" in found.note
    ess = [each["ess"] for each in points(found.temperatures, GENEROUS)]
    assert ess == pytest.approx(np.linspace(0.612, 0.95, 8).tolist(), abs=0.02)
    assert ess[0] > 0.6


def test_a_reward_that_nearly_all_events_have_still_gets_a_grid():
    """97% have the largest; ESS/n from .9709 to .9925, which .95 cannot end."""
    rewards = {"levels": [[1.0, 10], [3.0, 20], [5.0, 970]]}
    found = auto(rewards, 5)
    assert found.temperatures == sorted(set(found.temperatures))
    ess = [each["ess"] for each in points(found.temperatures, rewards)]
    assert 0.97 < ess[0] < 0.972
    assert ess[-1] == pytest.approx(0.9925, abs=1e-3)


def test_what_trains_alike_is_merged_into_the_larger():
    """On two equal halves q of the larger reward is 1 / (1 + e^(−1/λ)); λ from .1 down it is 1 within 5e-5."""
    kept, merged = merge([0.01, 1.0, 0.05, 0.1, 1000.0, 500.0], COIN)
    assert kept == [0.1, 1.0, 1000.0]
    assert [(each["temperature"], each["kept"]) for each in merged] == [(500.0, 1000.0), (0.05, 0.1), (0.01, 0.1)]
    assert merged[0]["ess"] == pytest.approx(1.0)
    assert merged[0]["kept_ess"] == pytest.approx(1.0)
    assert merged[2]["ess"] == pytest.approx(0.5)
    assert merged[2]["kept_ess"] == pytest.approx(0.5, abs=1e-4)


def test_a_row_of_neighbours_does_not_collapse_into_one():
    """Neighbours differ by .4 of the criterion; everything merged is within it of what it was merged into."""
    histogram = Histogram.of(ML_1M)
    dense = np.geomspace(0.5, 1.0, 40).tolist()
    assert max(histogram.distance(a, b) for a, b in pairwise(dense)) < SAME
    kept, merged = merge(dense, ML_1M)
    assert 5 < len(kept) < 40
    assert len(kept) + len(merged) == 40
    assert all(histogram.distance(each["temperature"], each["kept"]) < SAME for each in merged)
    assert all(histogram.distance(a, b) >= SAME for a, b in pairwise(kept))


def test_the_criterion_bounds_the_difference_of_two_losses():
    """Two λ within it: Σ q ℓ of any ℓ in 0 … 1 differ by less than SAME; two that are not may differ by more."""
    rng = np.random.default_rng(0)
    value_L, count_L = np.array(ML_1M["levels"]).T
    shares = {each: count_L * np.exp((value_L - 5) / each) for each in (0.5, 0.505, 0.6)}
    shares = {each: share / share.sum() for each, share in shares.items()}
    assert Histogram.of(ML_1M).distance(0.5, 0.505) < SAME < Histogram.of(ML_1M).distance(0.5, 0.6)
    losses = [rng.random(5) for _ in range(100)] + [np.array([1.0, 1.0, 1.0, 1.0, 0.0])]
    assert max(abs(float((shares[0.5] - shares[0.505]) @ each)) for each in losses) < SAME
    assert max(abs(float((shares[0.5] - shares[0.6]) @ each)) for each in losses) > SAME


def test_a_proposed_grid_needs_no_merging():
    for rewards in (ML_1M, GENEROUS, statistics("lognormal"), statistics("normal")):
        temperatures = auto(rewards, 8).temperatures
        assert merge(temperatures, rewards) == (temperatures, [])


@pytest.mark.parametrize("rewards", [{"levels": [[4.0, 10]]}, {"levels": None, "quantiles": [4.0] * 1001, "events": 9}])
def test_equal_rewards_are_refused(rewards):
    for action in (lambda: auto(rewards, 8), lambda: merge([1.0], rewards), lambda: points([1.0], rewards)):
        with pytest.raises(InputError, match="every training event has the reward 4, so every λ trains like BC"):
            action()


def test_a_grid_of_one_is_refused():
    with pytest.raises(InputError, match=r"^1 temperatures make no grid; ask for at least 2"):
        auto(ML_1M, 1)


@pytest.mark.parametrize(
    ("temperatures", "reason"),
    [
        ([], "is empty; give at least one λ, or temperatures=auto"),
        ([0.5, 0.0], "^0 is no temperature; λ is a finite number above 0"),
        ([-1.0], "^-1 is no temperature"),
        ([float("nan"), 0.5], "^nan is no temperature"),
        ([float("inf")], "^inf is no temperature"),
        ([0.5, 1.0, 0.5], "the temperature 0.5 is listed twice"),
    ],
)
def test_what_is_no_grid_is_refused(temperatures, reason):
    with pytest.raises(InputError, match=reason):
        check(temperatures)


def test_a_grid_is_accepted():
    check([2.0, 0.1, 1e-9])
