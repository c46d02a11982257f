"""WeightTally: the published diagnostics of ML-1M's ratings, its moments against a plain computation, two ranks."""

from __future__ import annotations

import json

import pytest
import torch
from tests.algorithms.logged import positions

from retilt import ranks
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.rsft import RSFT
from retilt.algorithms.weights import WeightTally
from retilt.types import InputError, Statistics

HISTOGRAM = {1.0: 56_174, 2.0: 107_557, 3.0: 261_197, 4.0: 348_971, 5.0: 226_310}
"""ML-1M's ratings, 1,000,209 events."""
STATISTICS = Statistics(positions=1_000_209, reward_min=1.0, reward_max=5.0, reward_mean=3.58)


def tally_of(algorithm):
    reward_P = torch.cat([torch.full((count,), value) for value, count in HISTOGRAM.items()])
    tally = WeightTally.of({"levels": [[value, count] for value, count in HISTOGRAM.items()]})
    one_P = torch.ones_like(reward_P)
    for part_P in reward_P.split(300_000):
        tally.add(part_P, algorithm.weight(positions(part_P), STATISTICS), one_P[: len(part_P)], one_P[: len(part_P)])
    return tally


# The project's table of ESS/n, the weight's share on 5 stars, 4 stars and fewer, and max w / mean w. Its last row
# says .30 for RSFT's 3 stars and fewer; by hand it is 1,054,879 / 3,582,313 = .294.
@pytest.mark.parametrize(
    ("algorithm", "ess", "shares", "largest"),
    [
        (ExpRSFT(temperature=0.1), 0.226, (1.00, 0.00, 0.00), 4.4),
        (ExpRSFT(temperature=0.25), 0.239, (0.97, 0.03, 0.00), 4.3),
        (ExpRSFT(temperature=0.5), 0.333, (0.81, 0.17, 0.02), 3.6),
        (ExpRSFT(temperature=1.0), 0.564, (0.57, 0.32, 0.11), 2.5),
        (ExpRSFT(temperature=2.0), 0.807, (0.40, 0.37, 0.23), 1.8),
        (ExpRSFT(temperature=5.0), 0.957, (0.29, 0.37, 0.34), 1.3),
        (RSFT(), 0.911, (0.32, 0.39, 0.29), 1.4),
    ],
)
def test_the_diagnostics_of_ml_1m(algorithm, ess, shares, largest):
    report = tally_of(algorithm).report()
    mass = {level["reward"]: level["weight"] for level in report["weight_mass"]}
    assert report["positions"] == 1_000_209
    assert report["ess_ratio"] == pytest.approx(ess, abs=5e-4)
    assert (mass[5.0], mass[4.0], mass[3.0] + mass[2.0] + mass[1.0]) == pytest.approx(shares, abs=5.001e-3)
    assert report["max_over_mean_weight"] == pytest.approx(largest, abs=0.05)
    assert [level["positions"] * 1_000_209 for level in report["weight_mass"]] == pytest.approx([*HISTOGRAM.values()])


def random_positions(n):
    generator = torch.Generator().manual_seed(0)
    reward_P = torch.randint(1, 6, (n,), generator=generator).float()
    popularity_P = torch.randint(1, 5_000, (n,), generator=generator)
    activity_P = torch.randint(1, 500, (n,), generator=generator)
    weight_P = torch.exp(reward_P - 5) * popularity_P.float().pow(0.1)
    return reward_P, weight_P, popularity_P, activity_P


def test_the_moments_equal_a_plain_computation():
    reward_P, weight_P, popularity_P, activity_P = random_positions(1_000)
    tally = WeightTally(torch.arange(1.0, 6.0))
    for part in zip(*(x.split(300) for x in (reward_P, weight_P, popularity_P, activity_P)), strict=True):
        tally.add(*part)
    w_P = weight_P.double()
    report = tally.report()
    assert report["mean_weight"] == tally.mean_weight == pytest.approx(w_P.mean().item())
    assert tally.ess_ratio == pytest.approx((w_P.mean() ** 2 / (w_P**2).mean()).item())
    for name, count_P in (("correlation_popularity", popularity_P), ("correlation_activity", activity_P)):
        expected = torch.corrcoef(torch.stack([w_P, count_P.double().log()]))[0, 1].item()
        assert report[name] == pytest.approx(expected, abs=1e-9)
    assert json.loads(json.dumps(report)) == report


def test_a_constant_weight_has_no_correlation():
    reward_P, _, popularity_P, activity_P = random_positions(1_000)
    tally = WeightTally(torch.arange(1.0, 6.0))
    tally.add(reward_P, torch.full((1_000,), 0.3), popularity_P, activity_P)
    assert tally.report()["correlation_popularity"] is None
    assert tally.ess_ratio == pytest.approx(1.0)


def test_many_levels_are_reported_by_decile():
    tally = WeightTally.of({"levels": None, "quantiles": [i / 1000 for i in range(1001)]})
    reward_P = (torch.arange(1000) + 0.5) / 1000
    tally.add(reward_P, reward_P, torch.ones(1000), torch.ones(1000))
    mass = tally.report()["weight_mass"]
    assert [level["reward"] for level in mass] == pytest.approx([i / 10 for i in range(10)])
    assert [level["positions"] for level in mass] == pytest.approx([1 / 10] * 10)
    assert [level["weight"] for level in mass] == pytest.approx([(2 * i + 1) / 100 for i in range(10)])


def test_a_level_that_float32_rounds_down_keeps_its_events():
    tally = WeightTally.of({"levels": [[0.1, 1], [4.1, 1]]})
    tally.add(torch.tensor([0.1, 4.1]), torch.ones(2), torch.ones(2), torch.ones(2))
    assert [level["positions"] for level in tally.report()["weight_mass"]] == [1 / 2, 1 / 2]


def test_no_position_is_refused():
    with pytest.raises(InputError, match="no position to train on"):
        ExpRSFT().check_weights(WeightTally(torch.tensor([1.0])))


def report_of_share(columns):
    """What a rank reports after counting its share in: the first 300 positions, or the others."""
    tally = WeightTally(torch.arange(1.0, 6.0))
    tally.add(*(column[:300] if ranks.rank() == 0 else column[300:] for column in columns))
    return tally.sum_over_ranks().report()


def test_two_ranks_report_what_one_does(two_ranks):
    columns = random_positions(1_000)
    reports = two_ranks(report_of_share, columns)
    whole = WeightTally(torch.arange(1.0, 6.0))
    whole.add(*columns)
    expected = whole.report()
    assert reports[0] == reports[1]
    assert reports[0].pop("weight_mass") == [pytest.approx(level) for level in expected.pop("weight_mass")]
    assert reports[0] == pytest.approx(expected)
