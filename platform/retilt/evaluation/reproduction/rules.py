"""How a claim is decided from numbers. Each rule: results → verdict and a sentence of evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from retilt.evaluation import student
from retilt.evaluation.reproduction.results import HEADLINE_METRIC, Results, reached, versus
from retilt.evaluation.reproduction.seeds import SUBJECT, standing
from retilt.evaluation.statistics import Floats
from retilt.evaluation.views.methods import ordered, title
from retilt.evaluation.wording import interval

Outcome = Literal["held", "not distinguishable", "did not hold", "not run"]
"""In the order in which they are counted."""
Comparison = Mapping[str, Any]

PEAK = (0.5, 1.0)
"""Where the paper sees the best λ (section 6)."""
FEWEST_ARMS = 5
"""With fewer, a permutation test says little: of four arms even a perfect order has p = 1/24."""
SHUFFLES = 10_000
ISOLATING = ("exp_rsft_permuted", "tilt_item")
AUDITED = 1
"""Seeds whose reward models are audited: the first."""
SIGNIFICANT = 0.05


class Finding(NamedTuple):
    """What a rule found."""

    outcome: Outcome
    evidence: str
    seeds: int | None = None
    """The fewest seeds of a comparison that it rests on; None where seeds are not what is compared."""


def difference(comparison: Comparison, what: str) -> str:
    """``what: +0.0123, users +0.0100 to +0.0140, seeds +0.0090 to +0.0160, Holm's p 0.012``."""
    found = f"{what}: undefined" if comparison["value"] is None else f"{what}: {comparison['value']:+.4f}"
    for name, low, high in (("users", "low", "high"), ("seeds", "t_low", "t_high")):
        if comparison.get(low) is not None:
            found += f", {name} {comparison[low]:+.4f} to {comparison[high]:+.4f}"
    if comparison.get("p_holm") is not None:
        found += f", Holm's p {comparison['p_holm']:.3f}"
    return found


def _judged(comparisons: Mapping[str, Comparison | None], wanted: str) -> Finding:
    """Held if all comparisons stand as ``wanted`` (better or worse); did not hold if any stands the other way."""
    present = {what: each for what, each in comparisons.items() if each is not None}
    lines = [difference(each, what) for what, each in present.items()]
    if missing := [what for what in comparisons if what not in present]:
        return Finding("not run", "; ".join([*lines, f"not run: {', '.join(missing)}"]))
    found = [standing(each) for each in present.values()]
    seeds = min(each["seeds"] for each in present.values())
    return Finding(_all(found, wanted), "; ".join(lines), seeds)


def _all(standings: Sequence[str], wanted: str = "better") -> Outcome:
    contrary = "worse" if wanted == "better" else "better"
    if contrary in standings:
        return "did not hold"
    return "held" if all(each == wanted for each in standings) else "not distinguishable"


def outperforms(results: Results, *others: str) -> Finding:
    """Held if Exp-RSFT is better than every one of ``others``; did not hold if it is worse than any."""
    found = {f"{title(SUBJECT)} − {title(other)}": versus(results, SUBJECT, other) for other in others}
    return _judged(found, "better")


def isolates(results: Results) -> Finding:
    """Held if the gain needs the rewards, is more than which items are good, and is more than weighting as strongly.

    So: Exp-RSFT is better than itself with permuted rewards and than BC tilted by item means, which validation tuned
    as far as Exp-RSFT; and its weights at RSFT's effective sample size are better than RSFT's. Where validation takes
    the strongest c and λ of the grids both are top-rated training, so that the last cannot hold: there is no shape.
    """
    same_size = "exp_rsft_at_rsft_ess"
    found = {f"{title(SUBJECT)} − {title(each)}": versus(results, SUBJECT, each) for each in ISOLATING}
    return _judged(found | {f"{title(same_size)} − RSFT": versus(results, same_size, "rsft")}, "better")


def collapse(results: Results, *arms: str) -> Finding:
    """Held if every one of ``arms`` is worse than BC; did not hold if any is better."""
    return _judged({f"{title(arm)} − BC": versus(results, arm, "bc") for arm in arms}, "worse")


def reward_model_no_better(results: Results, model: str) -> Finding:
    """Held if the reward model's error exceeds the item mean's in MSE or MAE and is below it in neither.

    Did not hold if it is below in both. Otherwise open: better in one of the two, or no difference shown.
    """
    audit = results.get("audit", {}).get(model, {})
    found = {error: audit.get("versus_item_mean", {}).get(error) for error in ("mse", "mae")}
    if any(each is None for each in found.values()):
        return Finding("not run", "the audit of this reward model against the item mean was not run")
    errors = [standing(each) for each in found.values()]  # "better" here: a larger error than the item mean's
    evidence = "; ".join(
        f"{error.upper()} {interval(audit[error])}, minus the item mean's {interval(each, '+')}"
        for error, each in found.items()
    )
    if all(each == "worse" for each in errors):
        return Finding("did not hold", evidence, AUDITED)
    held = "better" in errors and "worse" not in errors
    return Finding("held" if held else "not distinguishable", evidence, AUDITED)


def highest_scores(results: Results, *arms: str) -> Finding:
    """Held if each of ``arms`` is scored above BC, RSFT and Exp-RSFT; did not hold if one is scored below one of them.

    Scores are the averages by the training reward model at the same contexts, so that differences are paired.
    """
    found = {f"{title(arm)} − {title(other)}": scored(results, arm, other) for arm in arms for other in ("bc", "rsft")}
    above = _judged(found, "better")
    below = _judged({f"{title(SUBJECT)} − {title(arm)}": scored(results, SUBJECT, arm) for arm in arms}, "worse")
    evidence, outcomes = f"{above.evidence}; {below.evidence}", {above.outcome, below.outcome}
    order: tuple[Outcome, ...] = ("not run", "did not hold", "not distinguishable", "held")
    return Finding(next(each for each in order if each in outcomes), evidence, above.seeds)


def score(results: Results, arm: str) -> Mapping[str, Any] | None:
    """The average score of an arm by the training reward model; None if it was not scored."""
    found: Mapping[str, Any] | None = results.get("arms", {}).get(arm, {}).get("avg_reward", {}).get("training")
    return found


def scored(results: Results, arm: str, other: str) -> Comparison | None:
    """The paired comparison of two arms' average scores by the training reward model; None if there is none."""
    mine = score(results, arm)
    found: Comparison | None = None if mine is None else mine.get("versus", {}).get(other)
    return found


def judge_does_not_follow(results: Results) -> Finding:
    """Held if a policy is scored above BC and is truly worse, and the rank correlation over all arms is not positive.

    Did not hold if it is shown to be positive (one-sided permutation test at 5%) and no such policy exists.
    """
    pairs, contradictions, seeds = [], [], []
    for arm in ordered(results.get("arms", {})):
        mine, truth = score(results, arm), reached(results, arm)
        if mine is None or truth is None or None in (mine["value"], truth[HEADLINE_METRIC]["value"]):
            continue
        pairs.append((mine["value"], truth[HEADLINE_METRIC]["value"]))
        seeds.append(len(truth[HEADLINE_METRIC].get("seeds", [None])))
        told, true = scored(results, arm, "bc"), versus(results, arm, "bc")
        if told and true and standing(told) == "better" and standing(true) == "worse":
            contradictions.append(title(arm))
    if len(pairs) < FEWEST_ARMS:
        return Finding("not run", f"{len(pairs)} arms have a judge's score and true metrics; {FEWEST_ARMS} are needed")
    rho, p = rank_correlation(*zip(*pairs, strict=True))
    evidence = f"rank correlation {rho:+.2f} over {len(pairs)} arms (one-sided p {p:.3f}, were arms exchangeable)"
    evidence += f"; scored above BC and worse: {', '.join(contradictions) or 'none'}"
    if p < SIGNIFICANT and not contradictions:
        return Finding("did not hold", evidence, min(seeds))
    return Finding("held" if contradictions and rho <= 0 else "not distinguishable", evidence, min(seeds))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Spearman's ρ and the one-sided p of "not positive" from ``SHUFFLES`` permutations, drawn the same each time."""
    x, y = _ranks(first), _ranks(second)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    if not scale:
        return 0.0, 1.0
    rho = float(x @ y) / scale
    shuffled = np.random.default_rng(0).permuted(np.tile(y, (SHUFFLES, 1)), axis=1) @ x / scale
    return rho, (1 + int((shuffled >= rho - 1e-12).sum())) / (1 + SHUFFLES)


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1, ties sharing their mean."""
    array = np.asarray(values)
    below, level = array[:, None] > array, array[:, None] == array
    ranks: Floats = below.sum(1) + (level.sum(1) + 1) / 2
    return ranks


def inverted_u(results: Results, which: str) -> Finding:
    """Held if the λ chosen on validation beats both ends of the grid, BC and top-rated, on test.

    Did not hold if it is worse than any of the four, or if it is itself an end and beats every λ between the ends. An
    end that was chosen by a hair is no evidence against a curve that rises and falls: open.
    """
    sweep, chosen = _sweep(results, which)
    if len(sweep) < 3 or chosen is None:
        return Finding("not run", "a sweep of λ of three temperatures or more is needed")
    ends, best = (sweep[0], sweep[-1]), f"λ = {chosen['temperature']:g}"
    if chosen in ends:
        between = {f"{best} − λ = {each['temperature']:g}": _chosen_minus(each, which) for each in sweep[1:-1]}
        outcome, evidence, seeds = _judged(between, "better")
        outcome = "did not hold" if outcome == "held" else "not run" if outcome == "not run" else "not distinguishable"
        return Finding(outcome, f"validation chose {best}, an end of the grid; {evidence}", seeds)
    found = {f"{best} − λ = {end['temperature']:g}": _chosen_minus(end, which) for end in ends}
    against = chosen[which][HEADLINE_METRIC].get("versus", {})
    return _judged(found | {f"{best} − {title(arm)}": against.get(arm) for arm in ("bc", "top_rated")}, "better")


def peak_where_the_paper_sees_it(results: Results) -> Finding:
    """Held if the λ chosen on validation lies in [.5, 1] and beats both ends of the grid on test.

    Did not hold if it lies outside and beats every λ inside. A flat curve has no peak to place: open.
    """
    sweep, chosen = _sweep(results, "best")
    inside = [each for each in sweep if PEAK[0] <= each["temperature"] <= PEAK[1]]
    if len(sweep) < 3 or chosen is None or not inside:
        return Finding("not run", "a sweep of λ that reaches into .5 to 1 is needed")
    rivals = [each for each in ((sweep[0], sweep[-1]) if chosen in inside else inside) if each is not chosen]
    best = f"λ = {chosen['temperature']:g}"
    found = {f"{best} − λ = {each['temperature']:g}": _chosen_minus(each, "best") for each in rivals}
    outcome, evidence, seeds = _judged(found, "better")
    if chosen in inside or outcome == "not run":
        return Finding(outcome, f"validation chose {best}; {evidence}", seeds)
    return Finding("did not hold" if outcome == "held" else "not distinguishable", f"chosen {best}; {evidence}", seeds)


def _chosen_minus(entry: Mapping[str, Any], which: str) -> Comparison | None:
    """The chosen λ against another one of the sweep."""
    found: Comparison | None = entry[which][HEADLINE_METRIC].get("chosen_minus")
    return found


def _sweep(results: Results, which: str) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """The sweep of λ at an epoch, ascending, and the entry that validation chose."""
    sweep = [each for each in results.get("lambda", []) if which in each]
    return sweep, next((each for each in sweep if each.get("chosen")), None)


def noise_raises_lambda(results: Results) -> Finding:
    """Held if the best λ is larger with the most noise than with none, and each is better than the other where it is.

    The best is the best on average over seeds. Two t-intervals over seeds of NDCG@10 must exclude 0: of the larger λ
    minus the smaller with noise, and of the smaller minus the larger without. The seeds' choices alone say too little:
    on a grid all may move by one step, or none. That λ grows *linearly* is not tested.
    """
    runs = sorted((each for each in results.get("shifts", []) if each["kind"] == "noise"), key=lambda e: e["amount"])
    if len(runs) < 2 or runs[0]["amount"] != 0:
        return Finding("not run", "Exp-RSFT was not tuned with noise added to the rewards")
    quiet, noisy = runs[0], runs[-1]
    seeds = [seed for seed in quiet["chosen"] if seed in noisy["chosen"]]
    told = [", ".join(f"{each['chosen'][seed]:g}" for seed in seeds) for each in runs]
    evidence = "; ".join(f"noise SD {each['amount']:g}: λ = {what}" for each, what in zip(runs, told, strict=True))
    if not seeds:
        return Finding("not run", "no seed has all λ both with the most noise and with none")
    low, high = (_best(each["curves"], seeds) for each in (quiet, noisy))
    if low == high:
        return Finding("not distinguishable", f"{evidence}; the best on average stays {low}", len(seeds))
    ends = []
    for run, better, worse in ((noisy, high, low), (quiet, low, high)):
        steps = [run["curves"][seed][better] - run["curves"][seed][worse] for seed in seeds]
        ends.append(student.interval(steps))
        mean, between = sum(steps) / len(steps), _between(*ends[-1])
        evidence += f"; at SD {run['amount']:g} λ = {better} minus λ = {worse}: {mean:+.4f}{between}"
    if any(least is None or least <= 0 for least, _ in ends):
        return Finding("not distinguishable", evidence, len(seeds))
    return Finding("held" if float(high) > float(low) else "did not hold", evidence, len(seeds))


def _best(curves: Mapping[str, Mapping[str, float]], seeds: Sequence[str]) -> str:
    """The λ with the highest mean over these seeds."""
    return max(curves[seeds[0]], key=lambda temperature: sum(curves[seed][temperature] for seed in seeds))


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f", seeds {low:+.4f} to {high:+.4f}"
