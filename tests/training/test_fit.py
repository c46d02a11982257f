"""What is fitted before the first step: alike on two workers, kept by a checkpoint, and what a plain pass finds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from tests.spawning import Ranks

from retilt import ranks
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import train_batches
from retilt.training.fit import fit_statistics
from retilt.types import InputError, Statistics

N = 20
ALGORITHMS = {
    "trajectory": ExpRSFT(level="trajectory", returns="mean"),
    "trajectory of ranks": ExpRSFT(level="trajectory", rewards="rank"),
    "user_centred": ExpRSFT(rewards="user_centred"),
    "equal contexts": ExpRSFT(rewards="standardised", context_weight="equal"),
}


def fitted(data: str, algorithm: ExpRSFT) -> tuple[Statistics, dict[str, Any]]:
    """This rank's answer."""
    ranks.single()
    return fit_statistics(algorithm, Dataset.open(data), "select", N)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_workers_fit_what_one_does_and_a_checkpoint_keeps_it(data: str, two_ranks: Ranks, name: str) -> None:
    algorithm = ALGORITHMS[name]
    statistics, report = fitted(data, algorithm)
    first, second = two_ranks(fitted, data, algorithm)
    assert first == second
    one, two = asdict(statistics), asdict(first[0])
    assert one.pop("reward_ranks") == two.pop("reward_ranks")
    assert two == pytest.approx(one, rel=1e-12)
    assert first[1]["ess_ratio"] == pytest.approx(report["ess_ratio"])
    assert Statistics(**json.loads(json.dumps(asdict(statistics)))) == statistics
    assert json.loads(json.dumps(report)) == report


def test_returns_are_those_of_the_trained_window(data: str) -> None:
    """The last 20 rewards of each user's training events, and never a first event's, which nothing predicts."""
    statistics, report = fitted(data, ExpRSFT(level="trajectory"))
    dataset = Dataset.open(data)
    batches = list(train_batches(dataset, Plan.of(dataset, 12, 0), Cursor(0, 0), "select", N, 0, 1))
    returns = np.concatenate([batch.reward_BT[:, 1:].sum(1).numpy() for batch in batches])
    length = np.concatenate([batch.supervised_BT.sum(1).numpy() for batch in batches])
    assert (statistics.trajectories, statistics.positions) == (len(returns), length.sum())
    assert report["returns"] == pytest.approx(
        {
            "trajectories": len(returns),
            "mean": returns.mean(),
            "sd": returns.std(),
            "correlation_length": np.corrcoef(returns, length)[0, 1],
        }
    )
    assert report["returns"]["correlation_length"] > 0.8
    largest = (returns.max() - returns.mean()) / returns.std() / 0.5
    assert statistics.log_weight_max == pytest.approx(largest)
    weight = np.exp((returns - returns.max()) / returns.std() / 0.5)
    assert statistics.mean_weight == pytest.approx((weight * length).sum() / length.sum(), rel=1e-6)


def test_an_overflow_that_only_a_pass_finds_is_refused_on_both_workers(data: str, two_ranks: Ranks) -> None:
    first, second = two_ranks(refusal, data)
    assert first == second
    assert "algorithm.temperature=0.01 overflows: the largest weight is exp(" in first


def refusal(data: str) -> str:
    with pytest.raises(InputError) as refused:
        fitted(data, ExpRSFT(level="trajectory", temperature=0.01, normalize="none"))
    return str(refused.value)
