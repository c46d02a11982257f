"""The choice of λ: the largest within one standard error of the best, paired by user."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retilt.evaluation.choice import Candidate, choose, compared, deficit, value
from retilt.evaluation.metrics import NAMES
from retilt.evaluation.statistics import Tally

USERS, REPLICATES = 400, 500
GROUP, METRIC = "all", "ndcg@10"


def tally(values_U: np.ndarray, seed: int = 0) -> Tally:
    """One target a user; every metric has the same value."""
    found = Tally((GROUP,), REPLICATES, seed)
    user_U = torch.arange(len(values_U))
    metrics_PM = torch.from_numpy(values_U)[:, None].expand(-1, len(NAMES)).contiguous()
    found.add(user_U, torch.ones(1, len(user_U), dtype=torch.bool), metrics_PM, torch.zeros_like(user_U).bool())
    return found


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 1, USERS)


def candidates(base: np.ndarray, changes: dict[float, np.ndarray | float]) -> list[Candidate]:
    return [Candidate(f"lambda-{each:g}", each, tally(base + change)) for each, change in changes.items()]


def test_the_error_is_that_of_the_paired_difference(base: np.ndarray) -> None:
    step_U = np.random.default_rng(2).normal(0.01, 0.1, USERS)
    found = {name: each or 0.0 for name, each in deficit(tally(base + step_U), tally(base), GROUP, METRIC).items()}
    assert found["value"] == pytest.approx(step_U.mean())
    # SE of a mean of 400 differences of SD .1: 5% of it is what 500 replicates leave (1/√(2 · 500) is 3%).
    assert found["se"] == pytest.approx(step_U.std() / np.sqrt(USERS), rel=0.15)
    assert found["low"] < found["value"] < found["high"]


def test_the_largest_within_one_error_is_chosen_and_not_the_best(base: np.ndarray) -> None:
    noise_U = np.random.default_rng(3).normal(0, 0.1, USERS)
    noise_U -= noise_U.mean()
    se = noise_U.std() / np.sqrt(USERS)
    # Deficits of about 0, .5, .7 and 3 standard errors.
    changes = {0.5: 0.0, 1.0: noise_U - 0.5 * se, 2.0: noise_U - 0.7 * se, 4.0: noise_U - 3 * se}
    found = choose(candidates(base, changes), GROUP, METRIC)
    assert (found.chosen, found.best) == ("lambda-2", "lambda-0.5")
    last = found.deficits["lambda-4"]
    assert (last["value"] or 0.0) > 2 * (last["se"] or 1.0)
    assert found.deficits["lambda-0.5"]["value"] == 0


def test_a_constant_deficit_is_told_from_nothing_however_small(base: np.ndarray) -> None:
    # Every user loses the same: the difference has no error at all, while each mean's own is large.
    found = choose(candidates(base, {0.5: 0.0, 1.0: -1e-6}), GROUP, METRIC)
    assert found.chosen == found.best == "lambda-0.5"


def test_of_equal_values_the_larger_temperature_is_best(base: np.ndarray) -> None:
    found = choose(candidates(base, {2.0: 0.0, 0.5: 0.0, 1.0: 0.0}), GROUP, METRIC)
    assert found.chosen == found.best == "lambda-2"


def test_of_several_learning_rates_only_the_better_counts(base: np.ndarray) -> None:
    slow, fast = Candidate("slow", 1.0, tally(base)), Candidate("fast", 1.0, tally(base - 0.5))
    small = Candidate("small", 0.5, tally(base - 0.2))
    found = choose([fast, small, slow], GROUP, METRIC)
    assert found.chosen == "slow"
    assert set(found.deficits) == {"slow", "small"}


def test_a_group_without_targets_is_never_chosen(base: np.ndarray) -> None:
    empty = Tally((GROUP,), REPLICATES, 0)
    assert value(empty, GROUP, METRIC) == float("-inf")


def test_comparisons_say_who_is_better(base: np.ndarray) -> None:
    assert compared(tally(base + 0.1), tally(base), GROUP, METRIC)["standing"] == "better"
    assert compared(tally(base), tally(base + 0.1), GROUP, METRIC)["standing"] == "worse"
    assert compared(tally(base), tally(base), GROUP, METRIC)["standing"] == "no difference"
