"""Drift between two data sets: each measure by hand, its thresholds, new rewards, other units, no rewards at all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from retilt.data.dataset import Dataset
from retilt.data.statistics import Rewards
from retilt.evaluation.drift import FACTORS, Snapshot, compare
from retilt.types import InputError

STARS = {"levels": [[1.0, 56_174], [2.0, 107_557], [3.0, 261_197], [4.0, 348_971], [5.0, 226_310]]}
"""Ratings of MovieLens 1M."""
BEFORE = Snapshot(6040, 3706, 1_000_209, STARS)
COIN = Snapshot(100, 50, 1000, {"levels": [[0.0, 500], [1.0, 500]]})


def with_levels(snapshot, *levels):
    return replace(snapshot, rewards={"levels": [list(each) for each in levels]})


def continuous(scale=1.0, shift=0.0, spread=0.5, seed=0):
    reward = scale * np.random.default_rng(seed).lognormal(0, spread, 100_000) + shift
    statistics = Rewards.of(reward.astype(np.float32)).summary()
    assert statistics["levels"] is None
    return Snapshot(1000, 500, 100_000, statistics)


def test_the_same_data_have_not_drifted():
    assert compare(BEFORE, BEFORE, 0.5) == {
        "level": "none",
        "psi": 0.0,
        "shifts": {"ess": 0.0, "events_per_user": 0.0, "users": 0.0, "items": 0.0},
        "reason": "The rewards' PSI is 0.000, ESS/n at the previous λ +0.0%, events per user +0.0%, users +0.0%, "
        "items +0.0%: no drift.",
    }


def test_the_stability_index_of_levels_by_hand():
    """Halves become .4 and .6: .2 ln 1.5 = .0811; at λ → ∞ ESS/n is 1 both times."""
    found = compare(COIN, with_levels(COIN, (0.0, 400), (1.0, 600)), 1e9)
    assert found["psi"] == pytest.approx(0.1 * math.log(0.5 / 0.4) + 0.1 * math.log(0.6 / 0.5))
    assert found["shifts"]["ess"] == pytest.approx(0, abs=1e-9)
    assert found["level"] == "none"


@pytest.mark.parametrize(("larger", "level"), [(650, "none"), (656, "little"), (660, "little"), (770, "much")])
def test_the_stability_index_has_the_customary_thresholds(larger, level):
    """Σ (p − q) ln(p/q) from halves on: .093 at .65, .101 at .656, .106 at .66, .326 at .77."""
    share = larger / 1000
    psi = sum((p - 0.5) * math.log(p / 0.5) for p in (share, 1 - share))
    assert level == ("none" if psi < 0.1 else "little" if psi <= 0.25 else "much")
    found = compare(COIN, with_levels(COIN, (0.0, 1000 - larger), (1.0, larger)), 1e9)
    assert found["psi"] == pytest.approx(psi)
    assert found["level"] == level


@pytest.mark.parametrize(("share", "level"), [(0.001, "none"), (0.015, "none"), (0.02, "little"), (0.05, "much")])
def test_a_reward_that_did_not_exist_before_counts_as_a_rare_one(share, level):
    """Half a star below the largest; before, it counts as 1e-4 of the events, and nothing becomes infinite."""
    new = share * 1_000_209 / (1 - share)
    found = compare(BEFORE, with_levels(BEFORE, *STARS["levels"], (4.5, new)), 1e9)
    others = share * -math.log(1 - share)
    assert found["psi"] == pytest.approx((share - 1e-4) * math.log(share / 1e-4) + others)
    assert found["level"] == level
    back = compare(with_levels(BEFORE, *STARS["levels"], (4.5, new)), BEFORE, 1e9)
    assert back["psi"] == pytest.approx(found["psi"])


def test_rewards_in_another_unit_are_other_rewards():
    scaled = with_levels(BEFORE, *((10 * value, count) for value, count in STARS["levels"]))
    found = compare(BEFORE, scaled, 0.5)
    assert found["level"] == "much"
    assert "PSI is" in found["reason"]
    assert compare(scaled, scaled, 5.0)["level"] == "none"


def test_the_unit_itself_does_not_matter():
    now = with_levels(BEFORE, (1.0, 90_000), (2.0, 100_000), (3.0, 260_000), (4.0, 300_000), (5.0, 250_209))
    found = compare(BEFORE, now, 0.5)
    both = [
        with_levels(each, *((1000 * value + 7, count) for value, count in each.rewards["levels"]))
        for each in (BEFORE, now)
    ]
    other = compare(*both, 500.0)
    assert other["psi"] == pytest.approx(found["psi"])
    assert other["shifts"] == pytest.approx(found["shifts"])


def test_continuous_rewards_are_compared_by_deciles():
    before = continuous()
    # Another sample of the same: 9 degrees of freedom · 2/n = 2e-4 by chance, and 1e-3 steps of the quantiles.
    # The largest of a lognormal sample is another in each, so that ESS/n is compared at a large λ.
    again = compare(before, continuous(seed=1), 10.0)
    assert again["psi"] < 2e-3
    assert again["level"] == "none"
    little, much = (compare(before, continuous(scale=each, seed=1), 1e9) for each in (1.2, 1.5))
    # Shifted by δ = ln 1.2 / .5 = .36 SD, the normal's symmetric divergence is δ² = .133; deciles see a bit less.
    assert 0.1 < little["psi"] < 0.14
    assert (little["level"], much["level"]) == ("little", "much")


def test_levels_and_quantiles_can_be_compared():
    """Rewards that are rounded to quarters today (fewer than 1,024) and were not before."""
    reward = np.random.default_rng(0).lognormal(0, 0.5, 100_000)
    rounded = Rewards.of((np.ceil(reward * 20) / 20).astype(np.float32)).summary()
    assert rounded["levels"] is not None
    before = continuous()
    there, back = (
        compare(a, b, 2.0)
        for a, b in ((before, replace(before, rewards=rounded)), (replace(before, rewards=rounded), before))
    )
    assert there["psi"] < 0.02
    assert back["psi"] < 0.02


def test_a_longer_tail_shows_in_the_effective_sample_size():
    """The largest of 100,000 is three times as far: deciles do not move, exp(r/λ) does."""
    before = continuous()
    reward = np.random.default_rng(0).lognormal(0, 0.5, 100_000)
    reward[np.argmax(reward)] *= 3
    now = replace(before, rewards=Rewards.of(reward.astype(np.float32)).summary())
    found = compare(before, now, 2.0)
    assert found["psi"] < 1e-3
    assert found["shifts"]["ess"] < -0.5
    assert found["level"] == "much"
    assert found["reason"].startswith("ESS/n at the previous λ -")


@pytest.mark.parametrize("name", ["events_per_user", "users", "items"])
def test_counts_drift_by_factors_in_either_direction(name):
    little, much = FACTORS[name]
    for factor, level in ((little - 0.02, "none"), (little + 0.02, "little"), (much + 0.05, "much")):
        for ratio in (factor, 1 / factor):
            changed = {
                # As many users with more events, more users with as many each, more items.
                "events_per_user": {"events": round(COIN.events * 1000 * ratio), "users": COIN.users * 1000},
                "users": {"users": round(COIN.users * 1000 * ratio), "events": round(COIN.events * 1000 * ratio)},
                "items": {"items": round(COIN.items * 1000 * ratio)},
            }[name]
            before = Snapshot(COIN.users * 1000, COIN.items * 1000, COIN.events * 1000, COIN.rewards)
            found = compare(before, replace(before, **changed), 1.0)
            assert found["level"] == level, ratio
            assert found["shifts"][name] == pytest.approx(ratio - 1, abs=1e-4)
            assert [key for key, shift in found["shifts"].items() if abs(shift) > 1e-3] == [name]
            if level != "none":
                assert found["reason"].endswith(f"{ratio - 1:+.1%}: {level} drift.")


def test_a_snapshot_survives_json(data: str):
    """As it is kept by a search for the next one."""
    dataset = Dataset.open(data)
    now = Snapshot(dataset.users, dataset.items, dataset.events, dataset.statistics("select"))
    kept = Snapshot(**json.loads(json.dumps(asdict(now))))
    assert kept == now
    found = compare(kept, now, 0.5)
    assert json.loads(json.dumps(found)) == found
    assert found["level"] == "none"


def test_equal_rewards_are_refused():
    with pytest.raises(InputError, match="every training event has the reward 4, so every λ trains like BC"):
        compare(BEFORE, with_levels(BEFORE, (4.0, 1_000_209)), 0.5)
