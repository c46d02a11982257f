"""Halving and grids: the same number of trials for every method, and a choice that nothing but results decides."""

from __future__ import annotations

from typing import Any

import pytest

from retilt.algorithms.rsft import RSFT
from retilt.algorithms.temperatures import Histogram
from retilt.config.reproduce import TUNED
from retilt.types import Statistics
from retilt.workflows.tuning import Point, Rung, baselines, best, grid, lambdas, rungs, survivors

STARS = {"levels": [[float(star), 10] for star in range(1, 6)]}
HOURS: dict[str, Any] = {"levels": None, "quantiles": [each / 250 for each in range(1001)], "events": 5_000}
THREE = [Point({"name": "exp_rsft", "temperature": each}, 1.0) for each in (0.5, 1.0, 2.0)]


def test_a_third_of_the_trials_go_on_and_one_to_the_end():
    assert rungs(10, (2, 5, 10)) == [Rung(2, 10), Rung(5, 4), Rung(10, 1)]
    assert rungs(6, (1, 3, 6)) == [Rung(1, 6), Rung(3, 2), Rung(6, 1)]
    assert rungs(4, (7,)) == [Rung(7, 4)]


@pytest.mark.parametrize("rewards", [STARS, HOURS], ids=["stars", "hours"])
@pytest.mark.parametrize("method", TUNED)
def test_every_method_has_as_many_different_trials(method: str, rewards: dict[str, object]):
    for trials in (4, 6, 10):
        points = grid(method, trials, rewards)
        assert len({point.name for point in points}) == len(points) == trials


def test_the_grid_of_temperatures_is_in_the_unit_of_the_rewards_and_holds_the_papers_best():
    found = {point.algorithm["temperature"] for point in grid("exp_rsft", 10, STARS)}
    assert found == {0.12, 0.29, 0.69, 1.7, 4.0}


@pytest.mark.parametrize("longest", [6.0, 40.0])
def test_of_a_long_tail_the_grid_has_the_same_effective_sample_sizes_however_long_it_is(longest: float):
    """As watch time has: a largest reward far beyond all others would move a grid by shares of the range with it."""
    rewards = {**HOURS, "quantiles": [*HOURS["quantiles"][:-1], longest]}
    ratios = [Histogram.of(rewards).ess(each) for each in lambdas(5, rewards)]
    assert ratios == sorted(ratios)
    assert (ratios[0], ratios[-1]) == pytest.approx((0.25, 0.95), abs=0.02)


@pytest.mark.parametrize("rewards", [STARS, HOURS], ids=["stars", "hours"])
def test_rsft_may_follow_the_rewards_as_far_as_exp_rsft(rewards: dict[str, Any]):
    there = Histogram.of(rewards)
    found = baselines(5, rewards)
    sizes = [there.baseline_ess(each) for each in found]
    assert found[0] == 0.0
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(there.ess(lambdas(5, rewards)[0]), abs=0.02)


YES_OR_NO = {"levels": [[0.0, 70], [1.0, 30]]}
FAR_FROM_ZERO = {"levels": [[1000.0 + each, 10] for each in range(6)]}
NEGATIVE = {"levels": [[-2.04, 10], [0.0, 10], [1.0, 10], [2.0, 10]]}
NEGATIVE_HOURS = {**HOURS, "quantiles": [each - 1.0 for each in HOURS["quantiles"]]}
CLOSE = {"levels": [[0.0, 883], [2.0, 46], [2.5, 207], [3.5, 814], [4.0, 56]]}
FARTHER = {"levels": [[1e5 + each / 10, 10] for each in range(6)]}
FINE = {"levels": [[each / 1000, 10] for each in range(1001)]}


@pytest.mark.parametrize(
    "rewards", [STARS, HOURS, YES_OR_NO, FAR_FROM_ZERO, NEGATIVE, NEGATIVE_HOURS, FINE, CLOSE, FARTHER]
)
@pytest.mark.parametrize("number", [2, 3, 5])
def test_every_baseline_trains_otherwise_and_leaves_some_weight(rewards: dict[str, Any], number: int):
    there = Histogram.of(rewards)
    found = baselines(number, rewards)
    sizes = [there.baseline_ess(each) for each in found]
    assert len(set(sizes)) == len({f"{each:.12g}" for each in found}) == number
    assert found[0] == min(0.0, *(value for value, _ in rewards.get("levels") or [[rewards["quantiles"][0], 0]]))
    low, high = float(there.value_L[0]), float(there.value_L[-1])
    for each in found:
        assert each < high
        RSFT(baseline=each).check(Statistics(100, low, high, (low + high) / 2))


def test_where_zero_follows_the_rewards_as_far_as_can_be_the_grid_goes_towards_bc():
    found = baselines(4, YES_OR_NO)
    assert found[0] == 0.0
    assert found == sorted(found, reverse=True)
    sizes = [Histogram.of(YES_OR_NO).baseline_ess(each) for each in found]
    assert sizes[-1] == pytest.approx(Histogram.of(YES_OR_NO).ess(lambdas(2, YES_OR_NO)[-1]), abs=0.02)


def test_the_grid_of_baselines_on_stars():
    assert [point.algorithm["baseline"] for point in grid("rsft", 6, STARS)][::2] == [0.0, 2.1, 4.0]


def test_of_equal_scores_the_first_goes_on():
    assert best({"a": 0.1, "b": 0.3, "c": 0.3}, 1) == ["b"]


def test_a_rung_waits_for_all_trials_of_the_one_before():
    scores: dict[tuple[str, int], float] = {}
    steps = [Rung(1, 3), Rung(2, 1)]
    known = lambda point, epochs: scores.get((point.name, epochs))  # noqa: E731
    assert survivors(THREE, steps, known) == [(point, 1) for point in THREE]
    scores |= {(THREE[0].name, 1): 0.1, (THREE[2].name, 1): 0.3}
    assert len(survivors(THREE, steps, known)) == 3
    scores[THREE[1].name, 1] = 0.2
    assert survivors(THREE, steps, known)[3:] == [(THREE[2], 2)]


def test_a_trial_that_failed_does_not_go_on_and_does_not_stop_the_others():
    scores = {THREE[0].name: float("-inf"), THREE[1].name: 0.1, THREE[2].name: float("-inf")}
    found = survivors(THREE, [Rung(1, 3), Rung(2, 2)], lambda point, epochs: scores[point.name])
    assert found[3:] == [(THREE[1], 2)]
