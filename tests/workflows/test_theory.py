"""The experiment on section 4: its parts against closed forms, a whole small one, and what it refuses."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from retilt.algorithms import theory
from retilt.evaluation.theory_report import conclusions
from retilt.types import InputError
from retilt.workflows import tilting, winners
from retilt.workflows.theory import Scale, run
from retilt.workflows.winners import Grid, Log, Small

SCALE = Scale(
    items=60,
    states=6,
    catalogues=(100, 1000),
    numbers=200_000,
    events=(1000, 200_000),
    grid=Grid(errors=(0.0, 4.0), noises=(0.25,), coverages=(16,)),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    output = tmp_path_factory.mktemp("theory")
    return output, run(str(output), seed=3, seeds=6, scale=SCALE)


def test_the_results_are_written_with_their_views(written):
    output, results = written
    assert sorted(each.name for each in output.iterdir()) == ["theory.json", "theory.md", "theory.png"]
    assert json.loads((output / "theory.json").read_text()) == json.loads(json.dumps(results))
    text = (output / "theory.md").read_text()
    for sentence in conclusions(results):
        assert f"- {sentence}\n" in text
    assert "(theory.png)" in text
    width, height = struct.unpack(">II", (output / "theory.png").read_bytes()[16:24])
    assert width > 1500
    assert height > 800


def test_the_map_has_regions_for_both(written):
    (log,) = written[1]["winners"]["logs"]
    perfect, poor = log["cells"]
    assert (perfect["winner"], perfect["rmse"]) == ("rlhf", 0)
    assert poor["winner"] == "exp_rsft"
    assert poor["rmse"] > written[1]["winners"]["reward_sd"]
    assert log["exp_rsft"]["low"] > 0
    assert perfect["rlhf"]["value"] - log["exp_rsft"]["value"] == pytest.approx(-perfect["difference"]["value"])


def test_the_same_seed_gives_the_same_results(written):
    cell = winners.who_wins(SCALE.items, SCALE.states, range(3, 9), SCALE.grid)
    assert cell == written[1]["winners"]


def test_no_loss_exceeds_its_bounds(written):
    for each in written[1]["bounds"]:
        largest, attained = np.array(each["largest_loss"]), np.array(each["two_items"])
        tanh = np.array(each["tanh"])
        assert (largest <= np.minimum(tanh, each["any_temperature"]) + 1e-12).all()
        assert (attained <= np.minimum(tanh, each["any_temperature"]) + 1e-12).all()
        assert (attained > 0.5 * np.minimum(tanh, each["any_temperature"])).any()
        for safe in each["tolerances"]:
            assert safe["realised"] <= safe["tanh"] < safe["equation_15"]


def test_bounds_are_attained_and_fresh_noise_seeks_risk(written):
    results = written[1]
    assert max(each["ratio"] for each in results["attained"]) > 0.95
    assert all(0.35 < each["ratio"] < 0.75 for each in results["one_good_item"])
    equal, unequal = results["fresh_noise"]
    assert equal["between"] == pytest.approx(0, abs=1e-12)
    assert equal["logs"][-1]["true_tilt"] < 0.01
    assert unequal["logs"][-1]["limit"] < 0.01 < 0.05 < unequal["logs"][-1]["true_tilt"]
    assert unequal["noise_sd"]["limit"] > unequal["noise_sd"]["true_tilt"]


def test_a_larger_frozen_noise_moves_the_best_temperature_up():
    """What eq. 15 says of the order of things."""
    best = [tilting.against_bounds(200, 20, 0, noise)["best_temperature"] for noise in (1.0, 2.0, 4.0)]
    assert best == sorted(best)
    assert best[-1] > 4 * best[0]


def test_smoothed_counts_by_hand():
    # Both states: shares (3, 1, 0) + 1/3 each, of 5. State 0: (2 + 2/3, 1/3, 0) …; strength 1.
    count = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    share = np.array([10, 4, 1]) / 15
    np.testing.assert_allclose(winners.smoothed(count, 1), [(count[0] + share) / 3, (count[1] + share) / 3])


def test_exp_rsft_of_a_high_temperature_is_bc_and_of_a_long_log_the_tilt(monkeypatch):
    world = Small(30, 2, 0)
    shape = world.reward_SV.shape
    log = world.log(400_000, 0.5, 0)
    bc = winners.smoothed(winners.counted(log, np.ones(400_000), shape), 1)
    np.testing.assert_allclose(winners.exp_rsft(log, 1, 1e9, shape), bc, rtol=1e-8)
    # Fresh noise of one size: the tilt of r*.
    expected = theory.tilt(world.log_policy_SV, world.reward_SV, 0.7)
    found = winners.exp_rsft(log, 1, 0.7, shape)
    assert theory.total_variation(np.log(found), expected).max() < 0.02
    np.testing.assert_allclose(winners.rlhf(np.exp(world.log_policy_SV), world.reward_SV, 0.7), np.exp(expected))


def test_value_is_estimated_without_bias_on_a_long_log():
    world = Small(30, 2, 1)
    behaviour = np.exp(world.log_policy_SV)
    policy = winners.rlhf(behaviour, world.reward_SV, 0.5)
    held_out = world.log(200_000, 0.5, 0)
    found = winners.estimated_value(policy, behaviour, held_out)
    assert found == pytest.approx(world.worth(policy), abs=0.02)
    assert winners.estimated_value(behaviour, behaviour, held_out) == pytest.approx(held_out.reward_E.mean())


def test_an_item_mean_is_shrunk_by_one_event():
    log = Log(np.array([0, 0, 1]), np.array([0, 0, 2]), np.array([5.0, 3.0, 1.0]))  # mean 3
    np.testing.assert_allclose(winners.item_means(log, 3), [3 + 2 / 3, 3, 3 - 2 / 2])


def test_a_winner_needs_an_interval_without_zero():
    found = [winners.winner({"value": 1, "low": low, "high": high}) for low, high in ((0.1, 2), (-2, -0.1), (-1, 1))]
    assert found == ["exp_rsft", "rlhf", "no difference"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seeds": 0}, "seeds=0: the map of who wins needs at least 2 worlds"),
        ({"scale": Scale(items=9)}, "items=9, states=32: give at least 10 items"),
        ({"scale": Scale(states=0)}, "states=0: give at least 10 items and 1 state"),
    ],
)
def test_too_small_an_experiment_is_refused(tmp_path, settings, says):
    with pytest.raises(InputError, match=says):
        run(str(tmp_path / "theory"), **settings)
    assert not (tmp_path / "theory").exists()


def test_an_output_that_is_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(str(tmp_path / "file"))
