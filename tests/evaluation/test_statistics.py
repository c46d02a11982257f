"""The bootstrap over users: its draws, its independence of order and workers, and the coverage of its intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.spawning import Ranks

from retilt.evaluation.metrics import NAMES, metrics
from retilt.evaluation.statistics import FEWEST_USERS, Tally, poisson_weights, summary, verdict, versus

GROUPS = ("all", "untied")


def simulate(seed: int, users: int, strength: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Users (P,) and metrics (P, 5) of targets that depend on each other within a user; unequal numbers of targets."""
    source = np.random.default_rng(seed)
    user_P = np.repeat(np.arange(users), source.integers(1, 10, users))
    scale_U = np.exp(source.normal(3.5 - strength, 1.2, users))
    rank_P = 1 + np.floor(source.exponential(scale_U[user_P])).astype(np.int64)
    return torch.from_numpy(user_P), metrics(torch.from_numpy(rank_P))


def tally(user_P, metrics_PM, *, seed=0, replicates=400, parts=1, reverse=False) -> Tally:
    found = Tally(GROUPS, replicates, seed)
    order = reversed(range(parts)) if reverse else range(parts)
    for part in order:
        mine = user_P % parts == part
        member_GP = torch.stack([torch.ones_like(mine), user_P % 3 == 0])
        found.add(user_P[mine], member_GP[:, mine], metrics_PM[mine], torch.zeros(int(mine.sum()), dtype=torch.bool))
    return found


def test_draws_are_poisson_and_independent() -> None:
    drawn = poisson_weights(np.arange(2000), 500, seed=3).astype(float)
    n = drawn.size
    assert drawn.mean() == pytest.approx(1, abs=4 / math.sqrt(n))
    assert drawn.var() == pytest.approx(1, abs=8 / math.sqrt(n))
    for k in range(6):
        expected = math.exp(-1) / math.factorial(k)
        assert (drawn == k).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / n) + 1e-5)
    users, replicates = np.corrcoef(drawn.T[:300]), np.corrcoef(drawn)
    off = [each[~np.eye(len(each), dtype=bool)].std() for each in (users, replicates)]
    assert off == pytest.approx([1 / math.sqrt(500), 1 / math.sqrt(2000)], rel=0.05)


def test_draws_depend_on_seed_user_and_replicate_only() -> None:
    all_users = poisson_weights(np.arange(50), 21, seed=1)
    assert all_users.shape == (21, 50)
    np.testing.assert_array_equal(poisson_weights(np.array([7, 49, 0]), 9, seed=1), all_users[:9, [7, 49, 0]])
    assert (poisson_weights(np.arange(50), 21, seed=2) != all_users).mean() > 0.4


def test_draws_are_the_same_in_every_version() -> None:
    # A report must be repeatable later: these were drawn when the generator was written.
    expected = [[2, 1, 2], [0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 2]]
    assert poisson_weights(np.array([0, 1, 2**40]), 5, seed=0).tolist() == expected


def test_sums_do_not_depend_on_order_or_batches() -> None:
    user_P, metrics_PM = simulate(0, 200)
    once, parts = tally(user_P, metrics_PM), tally(user_P, metrics_PM, parts=7, reverse=True)
    torch.testing.assert_close(once.sums, parts.sums, rtol=1e-12, atol=1e-12)


def test_counts_and_means_are_those_of_the_data() -> None:
    user_P, metrics_PM = simulate(1, 100)
    found = summary(tally(user_P, metrics_PM), "untied")
    mine = user_P % 3 == 0
    assert (found["n"], found["users"], found["share_never_trained"]) == (int(mine.sum()), 34, 0.0)
    expected = metrics_PM[mine].mean(0).tolist()
    assert [found[name]["value"] for name in NAMES] == pytest.approx(expected, rel=1e-12)
    assert all(found[name]["low"] < found[name]["value"] < found[name]["high"] for name in NAMES)


def test_interval_is_that_of_the_classic_bootstrap() -> None:
    user_P, metrics_PM = simulate(2, 300)
    found = summary(tally(user_P, metrics_PM, replicates=4000), "all")
    sums_UM = torch.zeros(300, 5, dtype=torch.float64).index_add_(0, user_P, metrics_PM).numpy()
    count_U = np.bincount(user_P, minlength=300)
    drawn_RU = np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), size=4000)
    classic_RM = drawn_RU @ sums_UM / (drawn_RU @ count_U)[:, None]
    low, high = np.quantile(classic_RM, [0.025, 0.975], axis=0)
    for m, name in enumerate(NAMES):
        width = high[m] - low[m]
        assert found[name]["low"] == pytest.approx(low[m], abs=0.05 * width)
        assert found[name]["high"] == pytest.approx(high[m], abs=0.05 * width)


def test_intervals_cover_the_truth_and_ignoring_users_would_not() -> None:
    truth = simulate(10**6, 200_000)[1].mean(0).tolist()
    worlds, covered, as_if_independent = 300, np.zeros(5), np.zeros(5)
    for world in range(worlds):
        user_P, metrics_PM = simulate(world, 80)
        found = summary(tally(user_P, metrics_PM, seed=world), "all")
        covered += [found[name]["low"] <= truth[m] <= found[name]["high"] for m, name in enumerate(NAMES)]
        half = 1.96 * metrics_PM.std(0) / math.sqrt(len(metrics_PM))
        as_if_independent += (np.abs(metrics_PM.mean(0).numpy() - truth) <= half.numpy()).astype(float)
    assert (covered / worlds >= 0.90).all(), covered / worlds
    assert (covered / worlds <= 0.99).all(), covered / worlds
    assert (as_if_independent < covered).all()


def test_paired_intervals_cover_a_difference_and_are_narrower() -> None:
    truth = float((simulate(10**6, 200_000, 0.3)[1] - simulate(10**6, 200_000)[1]).mean(0)[0])
    worlds, covered = 200, 0
    for world in range(worlds):
        (user_P, first_PM), (_, second_PM) = simulate(world, 80), simulate(world, 80, 0.3)
        first, second = tally(user_P, first_PM, seed=world), tally(user_P, second_PM, seed=world)
        paired = versus(second, first)["all"]["ndcg@10"]
        low, high, alone = paired["low"], paired["high"], summary(second, "all")["ndcg@10"]
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
        assert high - low < alone["high"] - alone["low"]
    assert 0.90 <= covered / worlds <= 0.99


def test_equal_policies_show_no_difference_and_a_ratio_of_one() -> None:
    first, second = (tally(*simulate(4, 100)) for _ in range(2))
    for metrics_of_group in versus(second, first).values():
        for found in metrics_of_group.values():
            assert list(found.values()) == [0, 0, 0, 1, 1, 1]
            assert verdict(found) == "no difference"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.1, "no difference"),
        (0.0, 0.1, "no difference"),
        (None, None, "too few users"),
    ],
)
def test_verdict_reads_the_interval(low: float | None, high: float | None, expected: str) -> None:
    assert verdict({"value": 0.0, "low": low, "high": high}) == expected


def test_an_empty_group_has_no_values_and_no_warnings() -> None:
    user_P = torch.arange(1, 30, 3)
    found = tally(user_P, metrics(user_P))
    assert found.means("untied") == dict.fromkeys(NAMES)
    empty = summary(found, "untied")
    assert empty == {
        "n": 0, "users": 0, "share_never_trained": None,
        **{name: {"value": None, "low": None, "high": None} for name in NAMES},
    }  # fmt: skip
    assert verdict(versus(found, found)["untied"]["mrr"]) == "too few users"


def test_a_handful_of_users_gives_no_interval() -> None:
    def width(users: int) -> tuple[float | None, float | None]:
        user_P = torch.arange(users)
        found = summary(tally(user_P, metrics(1 + user_P)), "all")["mrr"]
        return found["low"], found["high"]

    assert width(FEWEST_USERS - 1) == (None, None)
    assert None not in width(FEWEST_USERS)


def test_ratio_is_undefined_where_the_first_policy_has_nothing() -> None:
    user_P = torch.arange(100)
    first, second = tally(user_P, metrics(user_P + 60)), tally(user_P, metrics(user_P % 5 + 1))
    found = versus(second, first)["all"]["hr@10"]
    assert (found["value"], found["low"], found["high"]) == (1, 1, 1)
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == (None, None, None)


def test_share_never_trained() -> None:
    found = Tally(("all",), 10, 0)
    assert found.share_never_trained() is None
    missing_P = torch.tensor([True, False, False, True])
    found.add(torch.tensor([0, 0, 1, 2]), torch.ones(1, 4, dtype=torch.bool), metrics(torch.ones(4).long()), missing_P)
    assert found.share_never_trained() == 2 / 4
    assert found.count("users") == 3


def test_replicates_may_be_none() -> None:
    found = tally(*simulate(5, 20), replicates=0)
    assert found.sums.shape[0] == 1
    assert found.means()["mrr"] is not None


def share_of(rank: int, world: int) -> Tally:
    user_P, metrics_PM = simulate(6, 90)
    mine = user_P % 5 < 2 if rank == 0 else user_P % 5 >= 2
    mine = torch.ones_like(mine) if world == 1 else mine
    found = Tally(GROUPS, 50, 0)
    member_GP = torch.stack([torch.ones_like(mine), user_P % 3 == 0])
    found.add(user_P[mine], member_GP[:, mine], metrics_PM[mine], torch.zeros(int(mine.sum()), dtype=torch.bool))
    return found


def summed_share() -> tuple[torch.Tensor, torch.Tensor]:
    from retilt import ranks

    mine = share_of(ranks.rank(), ranks.world())
    before = mine.sums.clone()
    whole = mine.sum_over_ranks()
    assert torch.equal(mine.sums, before)
    return whole.sums, before


def test_two_ranks_sum_to_one(two_ranks: Ranks) -> None:
    one = share_of(0, 1).sum_over_ranks()
    (first, _), (second, part) = two_ranks(summed_share)
    assert torch.equal(first, second)
    assert not torch.equal(second, part)
    torch.testing.assert_close(first, one.sums, rtol=1e-12, atol=1e-12)
