"""TopRated: what counts as top rated, and its loss worked out by hand on the policy of conftest.py."""

from __future__ import annotations

import math

import pytest
import torch
from tests.algorithms.logged import positions

from retilt.algorithms.top_rated import TopRated
from retilt.algorithms.weights import WeightTally
from retilt.types import InputError, Statistics

STARS = {"levels": [[1.0, 10], [2.0, 20], [3.0, 30], [4.0, 25], [5.0, 15]]}
CONTINUOUS = {"levels": None, "quantiles": [i / 100 for i in range(1001)]}
"""Uniform on 0 … 10."""


@pytest.mark.parametrize(("normalize", "total", "count"), [("none", 4, 4), ("mean", 8, 4), ("batch", 8, 4)])
def test_only_the_top_rated_count(policy, batch, normalize, total, count):
    statistics = Statistics(4, 1.0, 5.0, 15 / 4, mean_weight=1 / 2, threshold=5.0)
    loss = TopRated(normalize=normalize).loss(policy, batch, statistics)
    assert loss.total.item() == pytest.approx(total * math.log(2))  # −log2 π of items 1 and 4: 1 + 3
    assert loss.count.item() == pytest.approx(count)


def test_the_threshold_itself_is_top_rated():
    statistics = Statistics(3, 1.0, 5.0, 3.0, threshold=4.1)
    assert TopRated().weight(positions([4.0, 4.1, 5.0]), statistics).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("quantile", "threshold"),
    [(None, 5.0), (0.5, 3.0), (0.6, 3.0), (0.61, 4.0), (0.85, 4.0), (0.999, 5.0), (0.05, 1.0)],
)
def test_the_threshold_on_levels(quantile, threshold):
    """Cumulative shares of 1 … 5 stars: .10, .30, .60, .85, 1."""
    assert TopRated(quantile=quantile).threshold(STARS) == threshold


@pytest.mark.parametrize(("quantile", "threshold"), [(0.8, 8.0), (0.25, 2.5), (0.9995, 9.995)])
def test_the_threshold_on_continuous_rewards(quantile, threshold):
    assert TopRated(quantile=quantile).threshold(CONTINUOUS) == pytest.approx(threshold)


def test_continuous_rewards_need_a_quantile():
    with pytest.raises(InputError, match=r"continuous.*algorithm\.quantile=0\.8"):
        TopRated().threshold(CONTINUOUS)


def test_nothing_top_rated_is_refused():
    tally = WeightTally(torch.tensor([1.0]))
    tally.add(torch.ones(2), torch.zeros(2), torch.ones(2), torch.ones(2))
    with pytest.raises(InputError, match="every trained position has weight 0"):
        TopRated().check_weights(tally)
