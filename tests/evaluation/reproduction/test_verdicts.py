"""Every rule, every outcome, on results put together by hand."""

from __future__ import annotations

from typing import Any

import pytest

from retilt.evaluation.reproduction import rules
from retilt.evaluation.reproduction.verdicts import CLAIMS, judge

UP, DOWN, FLAT = (0.01, 0.03), (-0.03, -0.01), (-0.01, 0.02)
PROTOCOL = {"protocol": {"seeds": [0, 1, 2]}}


def compare(interval: tuple[float, float], t: Any = "same", seeds: int = 3) -> dict[str, Any]:
    """A comparison with an interval over users, and one over seeds that agrees unless told otherwise."""
    low, high = interval if t == "same" else t
    value = sum(interval) / 2
    return {"value": value, "low": interval[0], "high": interval[1], "t_low": low, "t_high": high, "seeds": seeds}


def arm(value: float = 0.1, score: float | None = None, **versus: tuple[float, float]) -> dict[str, Any]:
    """An arm with comparisons of NDCG@10, and of the judge's score where the name begins with ``judge_``."""
    judged = {name.removeprefix("judge_"): compare(each) for name, each in versus.items() if name.startswith("judge_")}
    true = {name: compare(each) for name, each in versus.items() if not name.startswith("judge_")}
    found: dict[str, Any] = {"test": {"high_reward": {"ndcg@10": {"value": value, "versus": true}}}}
    if score is not None:
        found["avg_reward"] = {"training": {"value": score, "versus": judged}}
    return found


def with_arms(**arms: Any) -> dict[str, Any]:
    return {**PROTOCOL, "arms": arms}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (UP, UP, "held"),
        (UP, FLAT, "not distinguishable"),
        (FLAT, DOWN, "did not hold"),
        (UP, DOWN, "did not hold"),
        (UP, None, "not run"),
    ],
)
def test_exp_rsft_must_beat_every_one(first, second, expected) -> None:
    versus = {"dpo": first} | ({} if second is None else {"ppo": second})
    found = rules.outperforms(with_arms(exp_rsft=arm(**versus)), "dpo", "ppo")
    assert found.outcome == expected
    assert "Exp-RSFT − DPO: " in found.evidence
    assert ("not run: Exp-RSFT − PPO" in found.evidence) == (second is None)


def test_seeds_that_disagree_leave_it_open() -> None:
    results = with_arms(exp_rsft=arm(rsft=UP))
    paired = results["arms"]["exp_rsft"]["test"]["high_reward"]["ndcg@10"]["versus"]
    paired["rsft"] = compare(UP, t=(-0.02, 0.06))
    found = rules.outperforms(results, "rsft")
    assert found.outcome == "not distinguishable"
    assert found.evidence == "Exp-RSFT − RSFT: +0.0200, users +0.0100 to +0.0300, seeds -0.0200 to +0.0600"


def test_holms_p_decides_primary_comparisons() -> None:
    results = with_arms(exp_rsft=arm(rsft=UP))
    assert rules.outperforms(results, "rsft").outcome == "held"
    results["primary"] = [{"against": "rsft", **compare(UP), "p_holm": 0.08}]
    found = rules.outperforms(results, "rsft")
    assert found.outcome == "not distinguishable"
    assert "Holm's p 0.080" in found.evidence


@pytest.mark.parametrize(
    ("mse", "mae", "expected"),
    [
        (UP, UP, "held"),
        (UP, FLAT, "held"),
        (UP, DOWN, "not distinguishable"),
        (FLAT, FLAT, "not distinguishable"),
        (DOWN, FLAT, "not distinguishable"),
        (DOWN, DOWN, "did not hold"),
    ],
)
def test_reward_model_against_the_item_mean(mse, mae, expected) -> None:
    errors = {name: {"value": 1.0, "low": 0.9, "high": 1.1} for name in ("mse", "mae")}
    audit = {"strong": {**errors, "versus_item_mean": {"mse": compare(mse), "mae": compare(mae)}}}
    found = rules.reward_model_no_better({"audit": audit}, "strong")
    assert found.outcome == expected
    assert "MSE 1.0000 (0.9000 to 1.1000), minus the item mean's" in found.evidence
    assert found.seeds == 1, "reward models of the first seed are audited"
    assert rules.reward_model_no_better({"audit": audit}, "reward_model").outcome == "not run"


@pytest.mark.parametrize(
    ("dpo", "ppo", "expected"),
    [
        (DOWN, DOWN, "held"),
        (DOWN, FLAT, "not distinguishable"),
        (DOWN, UP, "did not hold"),
        (DOWN, None, "not run"),
    ],
)
def test_collapse_is_below_bc(dpo, ppo, expected) -> None:
    arms = {"dpo": arm(bc=dpo)} | ({} if ppo is None else {"ppo": arm(bc=ppo)})
    assert rules.collapse(with_arms(**arms), "dpo", "ppo").outcome == expected


@pytest.mark.parametrize(
    ("over_bc", "over_rsft", "exp_rsft_over", "expected"),
    [
        (UP, UP, DOWN, "held"),
        (UP, FLAT, DOWN, "not distinguishable"),
        (UP, UP, FLAT, "not distinguishable"),
        (UP, DOWN, DOWN, "did not hold"),
        (UP, UP, UP, "did not hold"),
    ],
)
def test_highest_scores_are_above_all_three(over_bc, over_rsft, exp_rsft_over, expected) -> None:
    ppo = arm(score=4.0, judge_bc=over_bc, judge_rsft=over_rsft)
    results = with_arms(ppo=ppo, exp_rsft=arm(score=3.9, judge_ppo=exp_rsft_over))
    assert rules.highest_scores(results, "ppo").outcome == expected
    assert rules.highest_scores(results, "ppo", "dpo").outcome == "not run"


@pytest.mark.parametrize(
    ("permuted", "tilted", "weighted", "expected"),
    [
        (UP, UP, UP, "held"),
        (UP, UP, FLAT, "not distinguishable"),
        (UP, DOWN, UP, "did not hold"),
        (UP, UP, None, "not run"),
    ],
)
def test_what_isolates_the_temperature(permuted, tilted, weighted, expected) -> None:
    """More than permuted rewards, than which items are good, and than other weights of the same strength."""
    arms = {"exp_rsft": arm(exp_rsft_permuted=permuted, tilt_item=tilted)}
    if weighted is not None:
        arms["exp_rsft_at_rsft_ess"] = arm(rsft=weighted)
    found = rules.isolates(with_arms(**arms))
    assert found.outcome == expected
    assert ("Exp-RSFT at RSFT's ESS − RSFT: +" in found.evidence) == (weighted is not None)


def judged(order: list[float], *contradicting: str) -> dict[str, Any]:
    """Seven arms with rising scores and the given true values; some scored above BC and truly below it."""
    names = ("bc", "bc_continued", "rsft", "exp_rsft", "top_rated", "dpo", "ppo")
    arms = {}
    for i, (name, value) in enumerate(zip(names, order, strict=True)):
        worse = name in contradicting
        arms[name] = arm(value, 3 + i / 10, bc=DOWN if worse else FLAT, judge_bc=UP if worse else FLAT)
    return with_arms(**arms)


RISING, MIXED = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.4, 0.5, 0.3, 0.7, 0.2, 0.6, 0.1]


def test_judge_follows_the_truth_or_not() -> None:
    held = rules.judge_does_not_follow(judged(MIXED, "ppo"))
    assert held.outcome == "held"
    assert held.evidence.endswith("scored above BC and worse: PPO")
    assert held.seeds == 1
    assert rules.judge_does_not_follow(judged(MIXED)).outcome == "not distinguishable"
    assert rules.judge_does_not_follow(judged(RISING)).outcome == "did not hold"
    assert rules.judge_does_not_follow(judged(RISING, "ppo")).outcome == "not distinguishable"
    few = judged(RISING)
    few["arms"] = dict(list(few["arms"].items())[:4])
    assert rules.judge_does_not_follow(few).outcome == "not run"


def test_rank_correlation_by_hand() -> None:
    rho, p = rules.rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert rho == pytest.approx(1)
    assert p == pytest.approx(1 / 120, abs=0.003)  # of 120 orders one is perfect
    # Ranks 1, 2.5, 2.5, 4 against 4, 3, 2, 1: −4.5 / √(4.5 · 5).
    assert rules.rank_correlation([1, 2, 2, 3], [4, 3, 2, 1])[0] == pytest.approx(-4.5 / 22.5**0.5)
    assert rules.rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) == (0.0, 1.0)


def swept(chosen: float, minus: dict[float, tuple[float, float]], bc=UP, top=UP, which: str = "best") -> dict[str, Any]:
    """A sweep of .1, .5, 1 and 4 in which ``chosen`` was chosen and differs from the others as told."""
    entries = []
    for value in (0.1, 0.5, 1.0, 4.0):
        metric: dict[str, Any] = {"value": 0.1}
        if value == chosen:
            metric["versus"] = {"bc": compare(bc), "top_rated": compare(top)}
        else:
            metric["chosen_minus"] = compare(minus.get(value, FLAT))
        entries.append({"temperature": value, "chosen": value == chosen, which: {"ndcg@10": metric}})
    return {**PROTOCOL, "lambda": entries}


@pytest.mark.parametrize("which", ["best", "last"])
def test_inverted_u_beats_both_ends_bc_and_top_rated(which: str) -> None:
    ends = {0.1: UP, 4.0: UP}
    held = rules.inverted_u(swept(0.5, ends, which=which), which)
    assert held.outcome == "held"
    assert held.evidence.startswith("λ = 0.5 − λ = 0.1: +0.0200, users")
    assert "λ = 0.5 − Top-rated: " in held.evidence
    open_ones = [swept(0.5, {0.1: UP}, which=which), swept(0.5, ends, top=FLAT, which=which)]
    assert {rules.inverted_u(each, which).outcome for each in open_ones} == {"not distinguishable"}
    inner = {0.5: UP, 1.0: UP}
    failed = [swept(0.5, ends, bc=DOWN, which=which), swept(0.1, inner, which=which), swept(4.0, inner, which=which)]
    assert {rules.inverted_u(each, which).outcome for each in failed} == {"did not hold"}


@pytest.mark.parametrize("minus", [{}, {0.5: UP}, {0.5: UP, 1.0: DOWN}])
def test_an_end_that_was_chosen_by_a_hair_does_not_refute_an_inverted_u(
    minus: dict[float, tuple[float, float]],
) -> None:
    found = rules.inverted_u(swept(0.1, minus), "best")
    assert found.outcome == "not distinguishable"
    assert found.evidence.startswith("validation chose λ = 0.1, an end of the grid; λ = 0.1 − λ = 0.5: ")


@pytest.mark.parametrize("which", ["best", "last"])
def test_without_a_sweep_there_is_no_curve(which: str) -> None:
    assert rules.inverted_u(PROTOCOL, which).outcome == "not run"


def test_the_peak_is_where_the_paper_sees_it() -> None:
    ends = {0.1: UP, 4.0: UP}
    assert rules.peak_where_the_paper_sees_it(swept(1.0, ends)).outcome == "held"
    assert rules.peak_where_the_paper_sees_it(swept(1.0, {0.1: UP})).outcome == "not distinguishable"
    assert rules.peak_where_the_paper_sees_it(swept(4.0, {0.5: UP, 1.0: UP})).outcome == "did not hold"
    assert rules.peak_where_the_paper_sees_it(swept(4.0, {0.5: UP})).outcome == "not distinguishable"
    assert rules.peak_where_the_paper_sees_it(PROTOCOL).outcome == "not run"


def shifted(quiet: list[list[float]], noisy: list[list[float]]) -> dict[str, Any]:
    """NDCG@10 of λ = .5 and of λ = 1 on each seed, without noise and with it."""
    shifts = []
    for amount, seeds in ((0.0, quiet), (1.0, noisy)):
        curves = {str(s): {"0.5": low, "1": high} for s, (low, high) in enumerate(seeds)}
        chosen = {s: 0.5 if curve["0.5"] > curve["1"] else 1.0 for s, curve in curves.items()}
        grid = [[t, sum(curve[f"{t:g}"] for curve in curves.values()) / len(curves)] for t in (0.5, 1.0)]
        shifts.append({"kind": "noise", "amount": amount, "chosen": chosen, "grid": grid, "curves": curves})
    return {"shifts": shifts}


# Differences of .01, .01, .02: mean .0133, SD .00577, 4.303 · .00577/√3 = .0143; of .02, .02, .03: mean .0233.
CLEAR, HAIR = [[0.12, 0.1], [0.12, 0.1], [0.13, 0.1]], [[0.11, 0.1], [0.11, 0.1], [0.12, 0.1]]


def turned(curves: list[list[float]]) -> list[list[float]]:
    return [[high, low] for low, high in curves]


@pytest.mark.parametrize(
    ("quiet", "noisy", "expected"),
    [
        (CLEAR, turned(CLEAR), "held"),
        (turned(CLEAR), CLEAR, "did not hold"),
        (CLEAR, turned(HAIR), "not distinguishable"),
        (HAIR, turned(CLEAR), "not distinguishable"),
        (CLEAR, CLEAR, "not distinguishable"),
        # One seed has no interval, and of a few λ one will move by chance.
        (CLEAR[:1], turned(CLEAR[:1]), "not distinguishable"),
    ],
)
def test_noise_moves_the_best_temperature(quiet, noisy, expected) -> None:
    found = rules.noise_raises_lambda(shifted(quiet, noisy))
    assert (found.outcome, found.seeds) == (expected, len(quiet))
    assert found.evidence.startswith("noise SD 0: λ = ")


def test_noise_evidence_by_hand() -> None:
    found = rules.noise_raises_lambda(shifted(CLEAR, turned(CLEAR)))
    assert found.evidence.endswith(
        "; at SD 1 λ = 1 minus λ = 0.5: +0.0233, seeds +0.0090 to +0.0377"
        "; at SD 0 λ = 0.5 minus λ = 1: +0.0233, seeds +0.0090 to +0.0377"
    )


def test_noise_on_no_common_seed_was_not_tried() -> None:
    found = shifted(CLEAR, turned(CLEAR))
    for name in ("chosen", "curves"):
        found["shifts"][1][name] = {f"1{seed}": each for seed, each in found["shifts"][1][name].items()}
    assert rules.noise_raises_lambda(found).outcome == "not run"


def test_noise_was_not_tried() -> None:
    assert rules.noise_raises_lambda({}).outcome == "not run"


def test_nothing_was_run() -> None:
    found = judge(PROTOCOL)
    assert [each["claim"] for each in found] == [claim.name for claim in CLAIMS]
    assert {each["verdict"] for each in found} == {"not run"}
    assert all(each["evidence"] and not each["scope"] for each in found)
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_one_seed_claims_nothing_of_another_training_run() -> None:
    results = with_arms(exp_rsft=arm(bc=UP))
    paired = results["arms"]["exp_rsft"]["test"]["high_reward"]["ndcg@10"]["versus"]
    paired["bc"] = compare(UP, t=(None, None), seeds=1)
    found = {each["claim"]: each for each in judge(results)}["beats_bc"]
    assert found["verdict"] == "held"
    assert found["scope"] == "one seed: no claim beyond these trained policies"
    assert "seeds" not in found["evidence"]
    paired["bc"] = compare(UP)
    assert judge(results)[0]["scope"] == "3 seeds"
