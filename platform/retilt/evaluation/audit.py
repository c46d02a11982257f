"""How well reward models predict held-out rewards, beside predictors that know no sequence (Table 2 of the paper).

Mean squared and mean absolute error on the same held-out events, with paired intervals over users. A reward model that
is no better than the mean of all rewards cannot tell items apart: whoever optimises it optimises noise.

What each is told is not the same. The baselines know the training events, and so does the ``paper`` reward model, but
for the items of the user's window. The ``strong`` one is also told what the window's events were rewarded with, those
of earlier held-out events among them. So there is one baseline more, which is told as much and has nothing to learn:

    user_item_bias_so_far   μ + b_a + b_u(t),   b_u(t) = Σ_{j<t} (r_j − μ − b_j) / (t + 10)

over the t events of the window before the target, μ and b_a as in ``baselines``. What ``strong`` owes to its network,
and not to these rewards, is its difference from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from retilt.evaluation.baselines import PREDICTORS, USER_SHRINKAGE, Baselines
from retilt.evaluation.statistics import CPU, Tally, summary, versus
from retilt.types import Batch, RewardModel

ERRORS = ("mse", "mae")
SO_FAR = "user_item_bias_so_far"
BASELINES = (*PREDICTORS, SO_FAR)
"""What knows no sequence; every other name in an audit is that of a reward model."""


@torch.no_grad()
def errors(
    model: RewardModel, batches: Iterable[Batch], replicates: int, seed: int, device: torch.device = CPU
) -> Tally:
    """This rank's errors of r̂ of the targets, counted in. Collective: as many batches on every rank.

    Args:
        model: frozen.
        batches: a rank's share of held-out targets.
        replicates, seed: of the bootstrap; 0 replicates for means alone.
        device: where the model computes.
    """

    def predict(batch: Batch) -> dict[str, Tensor]:
        here = batch.to(device)
        return {"": model.score(here, here.target_item_P[:, None])[:, 0].cpu()}

    return _tallies(predict, [""], batches, replicates, seed, device)[""]


def baseline_errors(
    baselines: Baselines, batches: Iterable[Batch], replicates: int, seed: int, device: torch.device = CPU
) -> dict[str, Tally]:
    """The same of each baseline, by name."""

    def predict(batch: Batch) -> dict[str, Tensor]:
        found = baselines.predict(batch.target_item_P, batch.target_example_P)
        return {**found, SO_FAR: so_far(baselines, batch)}

    return _tallies(predict, BASELINES, batches, replicates, seed, device)


def so_far(baselines: Baselines, batch: Batch) -> Tensor:
    """The module's equation for the targets of a batch on the CPU, (P,) float64, in the unit of the reward."""
    residual_BT = batch.reward_BT.double() - baselines.mean - baselines.item_bias_V[batch.item_BT]
    user_P, place_P = batch.supervised_BT.nonzero(as_tuple=True)
    past_P = residual_BT.cumsum(1)[user_P, place_P - 1]  # a target is never the first event; padding comes after all
    return baselines.mean + baselines.item_bias_V[batch.target_item_P] + past_P / (place_P + USER_SHRINKAGE)


def _tallies(
    predict: Callable[[Batch], Mapping[str, Tensor]],
    names: Iterable[str],
    batches: Iterable[Batch],
    replicates: int,
    seed: int,
    device: torch.device,
) -> dict[str, Tally]:
    found = {name: Tally(("all",), replicates, seed, device, ERRORS) for name in names}
    for batch in batches:
        whole_P = torch.ones(len(batch.target_item_P), dtype=torch.bool)
        for name, predicted_P in predict(batch).items():
            error_P = predicted_P.double() - batch.target_reward_P
            metrics_PM = torch.stack([error_P.square(), error_P.abs()], dim=1)
            found[name].add(batch.target_example_P, whole_P[None], metrics_PM, ~whole_P)
    return found


def build(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """The audit's JSON-like report: of every predictor ``mse`` and ``mae``, and its ``versus_NAME`` of each baseline.

    The latter are paired differences, the predictor's error less the baseline's. ``tallies`` by name are over all
    ranks; those of reward models may have any name beside the baselines'.
    """
    found: dict[str, Any] = {}
    for name, tally in tallies.items():
        found[name] = {error: summary(tally, "all")[error] for error in ERRORS}
        for other in BASELINES:
            if name != other:
                found[name][f"versus_{other}"] = versus(tally, tallies[other])["all"]
    return found


def warnings(audit: Mapping[str, Any]) -> list[str]:
    """A sentence for each reward model whose error is above that of the training rewards' mean."""
    found = []
    for name in audit:
        for error in ERRORS:
            mine, mean = audit[name][error]["value"], audit["global_mean"][error]["value"]
            if name not in BASELINES and mine is not None and mine > mean:
                found.append(
                    f"{name} is WORSE than predicting the mean of all rewards: {error.upper()} {mine:.4f} against "
                    f"{mean:.4f} on the same held-out events; a policy that is optimised for it is optimised for noise"
                )
    return found


def table(audit: Mapping[str, Any]) -> list[str]:
    """Lines for the console: every predictor with its 95% intervals and its squared error less the item mean's."""
    lines = [f"{'held-out rewards':22}{'MSE':>26}{'MAE':>26}{'MSE minus item mean':>30}"]
    for name in sorted(audit, key=lambda each: audit[each]["mse"]["value"] or 0.0):
        against = audit[name].get("versus_item_mean")
        cells = [_cell(audit[name]["mse"]), _cell(audit[name]["mae"]), _cell(against["mse"], "+") if against else ""]
        lines.append(f"{name:22}{cells[0]:>26}{cells[1]:>26}{cells[2]:>30}")
    return lines


def _cell(measure: Mapping[str, float | None], sign: str = "") -> str:
    value, low, high = (measure[each] for each in ("value", "low", "high"))
    if value is None:
        return "–"
    between = "" if low is None or high is None else f" ({low:{sign}.4f} to {high:{sign}.4f})"
    return f"{value:{sign}.4f}{between}"
