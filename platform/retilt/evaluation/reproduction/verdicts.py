"""The paper's claims and a few of ours, each with the rule that decides it.

What was changed about rules after results had been seen is listed in docs/reproduce.md. A rule is a pure function of
the results (``rules``). ``held`` and ``did not hold`` both need evidence: an interval over users and one over seeds
that exclude 0, for primary comparisons Holm's p as well (where λ goes with noise, those over seeds, as validation
keeps no tallies of users). Anything else is ``not distinguishable``. With one seed there is no interval over seeds, and
``scope`` says that the verdict is about the policies trained with it, not about the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypedDict

from retilt.evaluation.reproduction import rules
from retilt.evaluation.reproduction.results import Results
from retilt.evaluation.reproduction.rules import Finding, Outcome

Origin = Literal["paper", "ours"]
"""Whose claim it is: ours are comparisons that the paper lacks, worded as it words its own."""


class Verdict(TypedDict):
    """A claim and what became of it."""

    claim: str
    text: str
    origin: Origin
    where: str
    rule: str
    verdict: Outcome
    scope: str
    evidence: str


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and how it is decided."""

    name: str
    text: str
    """The paper's own words where they are in quotation marks."""
    where: str
    rule: str
    decide: Callable[[Results], Finding]
    origin: Origin = "paper"


_BETTER = "NDCG@10 on the headline targets is better, both intervals excluding 0"
_HOLM = f"{_BETTER}, and Holm's p over the four primary comparisons ≤ .05"
_OUTPERFORMS = "“Exp-RSFT consistently outperforms all baselines”: "
_COLLAPSE = "“both PPO and DPO experience catastrophic collapse across all datasets”: "
_BELOW = "NDCG@10 on the headline targets is below BC's for both, both intervals excluding 0"
_HIGHEST = "“PPO and DPO achieve the highest reward model scores”: "
_ABOVE = "both score above BC, RSFT and Exp-RSFT by the training reward model, both paired intervals excluding 0"
_NAIVE = "“the learned reward model fails to outperform naive item-mean prediction”: "
_ERRORS = "MSE or MAE is above the item mean's and neither is below; did not hold if both are below"
_INVERTED = (
    "the λ chosen on validation beats both ends of the grid, BC and top-rated on test, in NDCG@10; did not hold if it "
    "is worse than one of them, or an end that beats every λ between"
)


def _beats(name: str, text: str, *others: str, rule: str = _BETTER, origin: Origin = "paper") -> Claim:
    return Claim(name, text, "section 6", rule, lambda results: rules.outperforms(results, *others), origin)


CLAIMS = (
    _beats("beats_bc", f"{_OUTPERFORMS}behaviour cloning", "bc"),
    _beats(
        "beats_bc_continued", "Exp-RSFT is better than behaviour cloning that may go on as long", "bc_continued",
        rule=_HOLM, origin="ours",
    ),
    _beats("beats_rsft", f"{_OUTPERFORMS}RSFT", "rsft", rule=_HOLM),
    _beats(
        "beats_top_rated", "Exp-RSFT is better than training on top-rated events alone", "top_rated",
        rule=_HOLM, origin="ours",
    ),
    _beats(
        "beats_tilt_item", "Exp-RSFT is better than tilting BC by item means, untrained", "tilt_item",
        rule=_HOLM, origin="ours",
    ),
    _beats("beats_rlhf", f"{_OUTPERFORMS}tuned DPO and PPO", "dpo", "ppo"),
    _beats("beats_rlhf_paper", f"{_OUTPERFORMS}paper-like DPO and PPO", "dpo_paper", "ppo_paper"),
    Claim(
        "reward_model_no_better", f"{_NAIVE}the paper's reward model", "section 1, Table 2", _ERRORS,
        partial(rules.reward_model_no_better, model="reward_model"),
    ),
    Claim(
        "strong_reward_model_no_better", f"{_NAIVE}the strong variant", "section 1, Table 2", _ERRORS,
        partial(rules.reward_model_no_better, model="strong"), "ours",
    ),
    Claim(
        "rlhf_collapses", f"{_COLLAPSE}tuned arms", "section 6, Figure 2", _BELOW,
        lambda results: rules.collapse(results, "dpo", "ppo"),
    ),
    Claim(
        "rlhf_collapses_paper", f"{_COLLAPSE}paper-like arms", "section 6, Figure 2", _BELOW,
        lambda results: rules.collapse(results, "dpo_paper", "ppo_paper"),
    ),
    Claim(
        "highest_scores", f"{_HIGHEST}tuned arms", "section 6", _ABOVE,
        lambda results: rules.highest_scores(results, "dpo", "ppo"),
    ),
    Claim(
        "highest_scores_paper", f"{_HIGHEST}paper-like arms", "section 6", _ABOVE,
        lambda results: rules.highest_scores(results, "dpo_paper", "ppo_paper"),
    ),
    Claim(
        "judge_does_not_follow", "the judge's score “does not correlate with true recommendation quality”", "section 6",
        "some policy scores above BC and is worse, and the rank correlation of score and NDCG@10 over all arms is not "
        "positive; did not hold if there is none and it is (one-sided permutation test at 5%)",
        rules.judge_does_not_follow,
    ),
    Claim(
        "inverted_u", "“a clear inverted-U shape as a function of λ”: best epoch", "section 6, Figure 3", _INVERTED,
        partial(rules.inverted_u, which="best"),
    ),
    Claim(
        "inverted_u_last", "“whether we select the best or final training epoch”: last epoch", "section 6, Figure 3",
        _INVERTED, partial(rules.inverted_u, which="last"),
    ),
    Claim(
        "peak", "“performance peaking near λ ≈ 0.5–1.0”", "section 6, Figure 3",
        "the λ chosen on validation lies in .5 to 1 and beats both ends of the grid on test; did not hold if it lies "
        "outside and beats every λ inside",
        rules.peak_where_the_paper_sees_it,
    ),
    Claim(
        "noise_raises_lambda", "“the minimum safe temperature scales linearly with the noise level”", "eq. 15",
        "with noise added to the training rewards the λ that is best on validation is larger, and each of the two is "
        "better than the other where it is best, t-intervals over seeds excluding 0; whether λ grows linearly is not "
        "tested",
        rules.noise_raises_lambda,
    ),
    Claim(
        "isolates_lambda", "gains over BC and RSFT “isolate λ as the key ingredient”", "section 1",
        "Exp-RSFT is better than itself with permuted rewards and than BC tilted by item means (Holm's p too), and its "
        "weights are better than RSFT's at RSFT's effective sample size, both intervals excluding 0",
        rules.isolates,
    ),
)  # fmt: skip


def judge(results: Results) -> list[Verdict]:
    """Every claim's verdict with the numbers it rests on, in the order of ``CLAIMS``."""
    return [_verdict(claim, claim.decide(results)) for claim in CLAIMS]


def _verdict(claim: Claim, found: Finding) -> Verdict:
    return {
        "claim": claim.name,
        "text": claim.text,
        "origin": claim.origin,
        "where": claim.where,
        "rule": claim.rule,
        "verdict": found.outcome,
        "scope": _scope(found),
        "evidence": found.evidence,
    }


def _scope(found: Finding) -> str:
    if found.outcome == "not run" or found.seeds is None:
        return ""
    return "one seed: no claim beyond these trained policies" if found.seeds == 1 else f"{found.seeds} seeds"
