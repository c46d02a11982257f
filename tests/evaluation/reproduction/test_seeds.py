"""Users averaged over seeds, then resampled; t over seeds; Holm; what is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.evaluation.reproduction.made_up import tally

from retilt.evaluation.metrics import NAMES, metrics
from retilt.evaluation.reproduction import seeds
from retilt.evaluation.statistics import Tally, poisson_weights, summary, versus

USERS, REPLICATES = 30, 50


def of(metrics_PM: torch.Tensor) -> Tally:
    """Two targets a user, the given metrics."""
    user_P = torch.arange(USERS).repeat_interleave(2)
    found = Tally(("all",), REPLICATES, 3)
    found.add(user_P, user_P[None] >= 0, metrics_PM, user_P < 0)
    return found


def mean_of(tally: Tally, metric: str) -> float:
    found = tally.means("all")[metric]
    assert found is not None
    return found


def three_seeds() -> list[torch.Tensor]:
    source = np.random.default_rng(0)
    return [metrics(torch.from_numpy(source.integers(1, 80, 2 * USERS))) for _ in range(3)]


def test_the_mean_of_tallies_is_the_tally_of_users_averaged_over_seeds() -> None:
    each = three_seeds()
    averaged = of(torch.stack(each).mean(0))
    pooled = seeds.average(map(of, each))
    torch.testing.assert_close(pooled.sums, averaged.sums, rtol=1e-12, atol=1e-12)
    # And by hand, user by user and replicate by replicate.
    weight_RU = poisson_weights(np.arange(USERS), REPLICATES, seed=3).astype(float)
    mean_U = torch.stack(each).mean(0).view(USERS, 2, len(NAMES)).sum(1)[:, NAMES.index("mrr")].numpy()
    expected = (weight_RU @ mean_U) / (2 * weight_RU.sum(1))
    found = pooled.sums[1:, 0, 3 + NAMES.index("mrr")] / pooled.sums[1:, 0, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_seeds_with_other_targets_are_refused() -> None:
    one, other = of(three_seeds()[0]), Tally(("all",), REPLICATES, 3)
    other.add(torch.arange(5), torch.ones(1, 5, dtype=torch.bool), metrics(torch.arange(1, 6)), torch.zeros(5) > 0)
    with pytest.raises(AssertionError, match="different targets"):
        seeds.average([one, other])


def test_measured_has_both_intervals_and_every_seed() -> None:
    mine = {seed: tally(1.0, seed) for seed in range(3)}
    found = seeds.measured(mine)["all"]
    values = [mean_of(mine[seed], "mrr") for seed in range(3)]
    assert found["mrr"]["seeds"] == values
    assert found["mrr"]["value"] == pytest.approx(sum(values) / 3, rel=1e-12)
    reach = 4.30265 * np.std(values, ddof=1) / math.sqrt(3)
    assert found["mrr"]["t_high"] - found["mrr"]["value"] == pytest.approx(reach, rel=1e-5)
    assert (found["n"], found["users"]) == (2000, 400)


def test_differences_are_paired_by_user_and_by_seed() -> None:
    mine, theirs = ({seed: tally(strength, seed) for seed in range(3)} for strength in (1.3, 1.0))
    found = seeds.compared(mine, theirs)["all"]["ndcg@10"]
    steps = [mean_of(mine[s], "ndcg@10") - mean_of(theirs[s], "ndcg@10") for s in range(3)]
    assert found["value"] == pytest.approx(sum(steps) / 3, rel=1e-12)
    assert (found["t_low"] + found["t_high"]) / 2 == pytest.approx(found["value"], rel=1e-12)
    assert found["t_high"] - found["value"] == pytest.approx(4.30265 * np.std(steps, ddof=1) / math.sqrt(3), rel=1e-5)
    pooled = versus(seeds.average(mine.values()), seeds.average(theirs.values()))["all"]["ndcg@10"]
    assert {name: found[name] for name in pooled} == pooled
    assert (found["seeds"], found["p"]) == (3, pytest.approx(2 / 201))


def test_only_seeds_that_both_have_are_compared() -> None:
    mine, theirs = {0: tally(1.3, 0), 1: tally(1.3, 1)}, {1: tally(1.0, 1), 2: tally(1.0, 2)}
    found = seeds.compared(mine, theirs)["all"]["mrr"]
    assert (found["seeds"], found["t_low"], found["t_high"]) == (1, None, None)
    assert found["value"] == versus(mine[1], theirs[1])["all"]["mrr"]["value"]


def test_p_counts_replicates_on_the_rarer_side() -> None:
    # 100 replicates, three of them at or below 0: 2 · (1 + 3) / 101.
    differences = np.concatenate([[-1.0, -0.5, 0.0], np.ones(97)])
    assert seeds.bootstrap_p(differences, users=50) == pytest.approx(8 / 101)
    assert seeds.bootstrap_p(-differences, users=50) == pytest.approx(8 / 101)
    assert seeds.bootstrap_p(np.zeros(100), users=50) == 1.0
    assert seeds.bootstrap_p(differences, users=5) is None


def test_holm_steps_down() -> None:
    # Sorted .01, .02, .04, .3 times 4, 3, 2, 1; no adjusted p is below a smaller one's.
    assert seeds.holm([0.01, 0.04, 0.02, 0.3]) == pytest.approx([0.04, 0.08, 0.06, 0.3])
    assert seeds.holm([0.03, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
    assert seeds.holm([0.9, 0.8]) == [1.0, 1.0]


def test_primary_counts_absent_opponents_against_the_claim() -> None:
    arms = {"exp_rsft": {0: tally(1.3, 0)}, "rsft": {0: tally(1.0, 0)}}
    (found,) = seeds.primary(arms, "high_reward")
    assert found["against"] == "rsft"
    assert (found["p"], found["p_holm"]) == (pytest.approx(2 / 201), pytest.approx(8 / 201))
    assert seeds.primary({"rsft": arms["rsft"]}, "high_reward") == []


def test_arms_are_compared_with_the_references_and_exp_rsft_with_all() -> None:
    arms = {name: {0: tally(1.0, 0)} for name in ("bc", "rsft", "exp_rsft", "ppo")}
    found = seeds.of_arms({**arms, "bc_continued": {1: tally(1.0, 1)}})
    assert list(found["ppo"]["all"]["mrr"]["versus"]) == ["bc", "rsft"]
    assert list(found["exp_rsft"]["all"]["mrr"]["versus"]) == ["bc", "rsft", "ppo"]
    assert "versus" not in found["bc_continued"]["all"]["mrr"], "it shares no seed with any other arm"


def test_temperatures_are_compared_with_the_chosen_one() -> None:
    grid = {value: {0: tally(strength, 0)} for value, strength in {2.0: 1.1, 0.5: 1.4, 0.1: 0.9}.items()}
    found = seeds.temperatures({"best": grid, "last": {0.5: grid[0.5]}}, 0.5, "all", {"bc": {0: tally(1.0, 0)}})
    assert [(each["temperature"], each["chosen"]) for each in found] == [(0.1, False), (0.5, True), (2.0, False)]
    low, chosen, high = (each["best"]["mrr"] for each in found)
    assert low["chosen_minus"]["value"] == pytest.approx(chosen["value"] - low["value"], rel=1e-9)
    assert high["chosen_minus"]["low"] > 0
    assert list(chosen["versus"]) == ["bc"]
    assert "last" in found[1]
    assert "last" not in found[0]


@pytest.mark.parametrize(
    ("users", "seed_interval", "p_holm", "expected"),
    [
        ((0.1, 0.3), (0.05, 0.4), 0.01, "better"),
        ((-0.3, -0.1), (-0.4, -0.05), 0.01, "worse"),
        ((0.1, 0.3), (-0.01, 0.4), 0.01, "no difference"),
        ((-0.1, 0.3), (0.05, 0.4), 0.01, "no difference"),
        ((0.1, 0.3), (0.05, 0.4), 0.06, "no difference"),
        ((0.1, 0.3), (None, None), 0.01, "better"),
        ((None, None), (0.05, 0.4), 0.01, "too few users"),
    ],
)
def test_a_claim_needs_every_interval_and_holm(users, seed_interval, p_holm, expected) -> None:
    comparison = {"low": users[0], "high": users[1], "t_low": seed_interval[0], "t_high": seed_interval[1]}
    assert seeds.standing({**comparison, "p_holm": p_holm}) == expected


def test_a_metric_of_no_targets_stays_undefined() -> None:
    empty = Tally(("all", "none"), REPLICATES, 0)
    user_P = torch.arange(20)
    empty.add(user_P, torch.stack([user_P >= 0, user_P < 0]), metrics(user_P + 1), user_P < 0)
    found = seeds.measured({0: empty, 1: empty})["none"]["mrr"]
    assert found == {**summary(empty, "none")["mrr"], "seeds": [], "t_low": None, "t_high": None}
    assert seeds.compared({0: empty}, {0: empty})["none"]["mrr"]["p"] is None
