"""What rewards become before they are exponentiated: by hand on a few, and against plain loops over users."""

from __future__ import annotations

import math

import pytest
import torch
from tests.algorithms.logged import positions

from retilt.algorithms.transforms import (
    largest,
    log_mean_of_others,
    reward_ranks,
    transformed,
    user_means,
    user_sums,
)
from retilt.types import Statistics

STARS = {"levels": [[1.0, 10], [2.0, 20], [5.0, 70]]}
STATISTICS = Statistics(100, 1.0, 5.0, 4.0, reward_sd=2.0, reward_ranks=reward_ranks(STARS))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("raw", [1.0, 2.0, 5.0, 5.0, 1.0]),
        ("standardised", [-1.5, -1.0, 0.5, 0.5, -1.5]),
        ("rank", [0.05, 0.2, 0.65, 0.65, 0.05]),
        ("user_centred", [-0.5, 0.5, 4 / 3, 4 / 3, -8 / 3]),
    ],
)
def test_each_transform(kind, expected):
    found = transformed(positions([1, 2, 5, 5, 1], user=[7, 7, 3, 3, 3]), kind, STATISTICS)
    assert found.tolist() == pytest.approx(expected)
    if kind != "user_centred":  # whose largest is not known beforehand
        assert found.max() == largest(kind, STATISTICS)


def test_the_ranks_of_continuous_rewards_are_those_of_their_quantiles():
    """Half of the rewards 0, the others uniform on 0 … 10: rank .25 of 0, else .5 + r/20; bounded beyond the range."""
    quantiles = [0.0] * 500 + [i / 50 for i in range(501)]
    ranked = Statistics(1000, 0.0, 10.0, 2.5, reward_ranks=reward_ranks({"levels": None, "quantiles": quantiles}))
    found = transformed(positions([0.0, 0.02, 5.0, 7.77, 10.0, 1e30, -1.0]), "rank", ranked)
    assert found.tolist() == pytest.approx([0.25, 0.501, 0.75, 0.8885, 1, 1, 0.25], abs=1e-6)
    assert largest("rank", ranked) == 1


def test_sums_and_means_of_users():
    user_P = positions([0] * 4, user=[4, 4, 4, 2]).user_P
    assert user_sums(torch.tensor([1.0, 2.0, 3.0, 4.0]), user_P).tolist() == [6, 4]
    assert user_means(torch.tensor([1.0, 2.0, 3.0, 4.0]), user_P).tolist() == [2, 4]


def plain_mean_of_others(value, user):
    """ln of the mean of the others, term by term from their largest on."""
    found = []
    for i, (own, whose) in enumerate(zip(value, user, strict=True)):
        others = [value[j] for j, other in enumerate(user) if other == whose and j != i]
        top = max(others, default=own)
        mean = sum(math.exp(each - top) for each in others) / len(others) if others else 1.0
        found.append(top + math.log(mean))
    return found


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0, 1e5])
def test_the_mean_of_the_others_of_a_user(scale):
    """Exponents 10⁵ apart neither overflow nor lose what the user's largest hides; ties for the largest as well."""
    generator = torch.Generator().manual_seed(0)
    user = [u for u, n in enumerate((1, 2, 3, 40, 1, 7)) for _ in range(n)]
    value_P = torch.randint(-3, 3, (len(user),), generator=generator).double() * scale
    value_P[10] = 5 * scale
    found = log_mean_of_others(value_P, torch.tensor(user))
    assert found.tolist() == pytest.approx(plain_mean_of_others(value_P.tolist(), user), rel=1e-12, abs=1e-12)


def test_a_user_s_only_position_keeps_its_own_and_nobody_has_none():
    assert log_mean_of_others(torch.tensor([3.0]).double(), torch.tensor([0])).tolist() == [3]
    nothing = torch.zeros(0, dtype=torch.float64)
    assert log_mean_of_others(nothing, nothing.long()).tolist() == []
    assert transformed(positions([]), "user_centred", STATISTICS).tolist() == []
