"""The layout of ``results.json``, and how its views find their way in it. What was not run is an absent key.

::

    {"kind": "reproduction", "format": 1, "preset": "ml-1m",
     "dataset": {"name", "users", "items", "events", "fingerprint", "uri",
                 "events_per_user": mean, "histogram": [[reward, events], …]},
     "protocol": {"split", "k", "min_reward", "seeds": [0, 1, 2], "epochs": n, "trials": n a method,
                  "headline": group, "commands": [str]},
     "identity": {"code": {"retilt", "source_sha256", "torch"}, "bootstrap": {"replicates", "seed"}},
     "warnings": [str],
     "audit": {PREDICTOR: {"mse": MEASURE, "mae": MEASURE, "versus_item_mean": {"mse": MEASURE, "mae": MEASURE}, …}},
     "arms": {ARM: {"arm": "tuned" | "paper-like" | "control", "algorithm": {…}, "learning_rate": x,
                    "trials": n, "tried": [{"name", "epochs", "best_epoch", "value": on validation, "chosen": true,
                                            "end_of_grid": bool of the chosen one, "failed": reason, "curve"}],
                    "positions": trained in total, "seconds": of workers in total,
                    "test": {GROUP: {"n", "users", "share_never_trained", METRIC: TESTED}},
                    "avg_reward": {"training": TESTED, "judge": TESTED, "entropy": TESTED, "kl": TESTED},
                    "lists": {"coverage@10": MEASURE, "gini@10": MEASURE, "popularity_lift": MEASURE},
                    "pairwise_accuracy": TESTED,
                    "curve": [{"epoch": e, "seed": s, METRIC: x, "avg_reward": x, "kl": x, "entropy": x}]}},
     "primary": [{"against": ARM, **COMPARISON, "p_holm": x}],
     "lambda": [{"temperature": λ, "ess": ESS/n, "chosen": bool, "best": {METRIC: SWEPT}, "last": {METRIC: SWEPT}}],
     "shifts": [{"kind": "noise" | "thinned", "amount": SD of the noise added | share of users kept,
                 "chosen": {"0": λ of seed 0, …}, "grid": [[λ, NDCG@10], …], mean over seeds,
                 "curves": {"0": {"λ": NDCG@10 of seed 0, …}, …}}],
     "reward_models": {NAME: {"positions", "seconds"}},
     "alarms": [{"arm", "trial", "chosen": bool, "seed", "kind": "hacking" | "collapse", "epochs": [e, …],
                 "evidence": of the first of them}],
     "not_run": [{"what": str, "why": str}],
     "verdicts": [{"claim", "text", "origin": "paper" | "ours", "where", "rule", "verdict", "scope", "evidence"}]}

    MEASURE     {"value", "low", "high"}: 95% interval over users
    TESTED      MEASURE with "seeds": [value of each seed], "t_low", "t_high", "versus": {ARM: COMPARISON}
    SWEPT       TESTED; the chosen λ with "versus" BC and top-rated, the others with "chosen_minus": COMPARISON
    COMPARISON  "value", "low", "high", "ratio", "ratio_low", "ratio_high", "t_low", "t_high", "seeds": S, "p"

``seeds.of_arms`` of tallies gives ``test``, and of other tallies the group ``all`` gives ``avg_reward`` and
``pairwise_accuracy``; ``primary`` and ``lambda`` are what ``seeds.primary`` and ``seeds.temperatures`` return;
``audit`` is what ``evaluation.audit.build`` returns, and ``verdicts`` is added by ``report.write``. METRIC: the names
of ``evaluation.metrics``. GROUP: those of the tally, so ``high_reward``, ``all``, ``untied``, ``low_reward`` and
``within/…`` (``evaluation.groups``), which say who gains. ``headline`` (``high_reward`` if absent) is the group that
conclusions are about: targets rated ≥ 4.5, or those of high-return trajectories (``high_return``). ARM: see
``views.methods``. PREDICTOR: ``reward_model`` (the paper's), ``strong``, ``user_mean``, ``item_mean``, ``global_mean``,
``user_item_bias``, ``user_item_bias_so_far``.
``shifts`` holds the undisturbed run of each kind too (noise 0, share 1). Epoch 0 of a curve is the BC policy that
post-training starts from; ``avg_reward`` is by the training reward model, for the arms that learn from one, and a curve
is on validation data, of the run that was chosen there. ``learning_rate_factor`` may stand for ``learning_rate``: a
multiple of what pretraining used.
Undefined numbers are null, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retilt.evaluation.wording import describe

KIND, FORMAT = "reproduction", 1
HEADLINE_METRIC = "ndcg@10"

Results = Mapping[str, Any]


def headline(results: Results) -> str:
    """The group of targets that conclusions are about."""
    return str(results["protocol"].get("headline", "high_reward"))


def where(results: Results, group: str) -> str:
    """Which targets a group of the test part holds, in words."""
    return describe(group, results["protocol"].get("min_reward"))


def reached(results: Results, arm: str, group: str | None = None) -> Mapping[str, Any] | None:
    """What an arm reached on a group of test targets (the headline group); None if it was not evaluated."""
    found: Mapping[str, Any] | None = (
        results.get("arms", {}).get(arm, {}).get("test", {}).get(group or headline(results))
    )
    return found


def versus(results: Results, arm: str, other: str, metric: str = HEADLINE_METRIC) -> Mapping[str, Any] | None:
    """The paired comparison of two arms on the headline group, the primary one with Holm's p; None if there is none."""
    if arm == "exp_rsft" and metric == HEADLINE_METRIC:
        for each in results.get("primary", []):
            if each["against"] == other:
                return dict(each)
    mine = reached(results, arm)
    found: Mapping[str, Any] | None = None if mine is None else mine[metric].get("versus", {}).get(other)
    return found
