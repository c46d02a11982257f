"""A made-up λ search: an inverted U around λ = 0.6, put together by hand in the layout of search.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from retilt.evaluation.metrics import NAMES

TEMPERATURES = (0.15, 0.25, 0.4, 0.6, 0.9, 1.4, 2.2, 3.6)
SCALE = {"ndcg@10": 1.0, "ndcg@50": 1.5, "hr@10": 1.9, "hr@50": 3.9, "mrr": 0.9}


def measure(value: float, reach: float = 0.006) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def strength(temperature: float, rate: float) -> float:
    """NDCG@10 after very many epochs."""
    return 0.085 + 0.02 * math.exp(-(math.log(temperature / 0.6) ** 2)) - 0.004 * abs(math.log(rate / 1e-3))


def course(final: float, epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": e, "ndcg@10": 0.08 + (final - 0.08) * (1 - math.exp(-e / 2.5)), "loss": 6.5 - 0.1 * e}
        for e in range(1, epochs + 1)
    ]


def metrics(value: float) -> dict[str, Any]:
    return {name: measure(value * SCALE[name], 0.006 * SCALE[name]) for name in NAMES}


def trial(method: str, temperature: float | None, rate: float, epochs: int, rung: int, final: float) -> dict[str, Any]:
    curve = course(final, epochs)
    reached = curve[-1]["ndcg@10"]
    at = temperature or {"top_rated": 0.1, "bc": 50.0, "rsft": 4.0}[method]
    own = method if temperature is None else f"lambda-{temperature:g}"
    return {
        "name": f"{own}-rate-{rate:g}", "method": method, "temperature": temperature,
        "learning_rate": rate, "state": "done", "reason": None, "epochs": epochs, "rung": rung, "best_epoch": epochs,
        "ess": at / (at + 0.3), "kl": 0.3 / at * epochs / 10, "entropy": 5.5 - 0.1 / at, **metrics(reached),
        "all": metrics(0.9 * reached), "curve": curve, "positions": 90_000 * epochs, "seconds": 12.5 * epochs,
    }  # fmt: skip


def search(rates: Sequence[float] = (1e-3,), temperatures: Sequence[float] = TEMPERATURES) -> dict[str, Any]:
    """Halving over 1, 3 and 10 epochs; λ = 0.6 at the first learning rate wins, one trial of RSFT fails."""
    trials = []
    for rate in rates:
        for each in temperatures:
            near = abs(math.log(each / 0.6)) < 0.95 and rate == rates[0]
            epochs, rung = (10, 2) if near and each == 0.6 else (3, 1) if near else (1, 0)
            trials.append(trial("exp_rsft", each, rate, epochs, rung, strength(each, rate)))
            if rung == 2:
                value = trials[-1]["curve"][2]["ndcg@10"]
                trials[-1]["deciding"] = {**metrics(value), "kl": 0.3 / each * 3 / 10}
        trials.append(trial("bc", None, rate, 3, 1, 0.086))
        trials.append(trial("top_rated", None, rate, 1, 0, 0.083))
        trials.append(trial("rsft", None, rate, 1, 0, 0.087))
    if len(rates) > 1:
        trials[-1].update(state="failed", reason="loss is not finite at step 12 | <nan>", curve=[], epochs=0)
        for name in (*NAMES, "all", "ess", "kl", "entropy", "best_epoch"):
            trials[-1][name] = None
    positions = sum(each["positions"] for each in trials)
    return {
        "kind": "lambda_search", "format": 1,
        "dataset": {
            "name": "ml-100k", "uri": "runs/ml-100k", "fingerprint": "d1", "users": 943, "items": 1682,
            "events": 100_000, "histogram": [[1, 6110], [2, 11370], [3, 27145], [4, 34174], [5, 21201]],
        },
        "initial": "runs/bc/policy/best", "output": "runs/search",
        "protocol": {
            "metric": "ndcg@10", "group": "high_reward", "min_reward": 4.5, "search": "halving", "split": "last_k",
            "k": 10, "epochs": 10, "seed": 0, "workers": 1, "deciding_epochs": 3,
            "rungs": [{"epochs": 1, "trials": len(trials)}, {"epochs": 3, "trials": 4}, {"epochs": 10, "trials": 1}],
            "commands": ["python jobs/tune_lambda.py dataset=runs/ml-100k output=runs/search"],
        },
        "identity": {
            "code": {"retilt": "0.1", "source_sha256": "ab" * 32, "torch": "2.5"},
            "bootstrap": {"replicates": 1000, "seed": 0},
        },
        "grid": {
            "source": "auto", "temperatures": list(temperatures), "learning_rates": list(rates),
            "points": [{"temperature": each, "ess": each / (each + 0.3)} for each in temperatures],
            "merged": [{"temperature": 0.17, "kept": 0.15, "ess": 0.251, "kept_ess": 0.25}],
        },
        "noise": {
            "method": "residual around user and item means", "sd": 0.92, "events": 90_570, "radius": 5.27,
            "failure": 0.05, "tolerance": 0.4, "reward_range": 4.0, "floor": 110.6, "floor_tanh": 26.3,
        },
        "drift": None,
        "initial_policy": metrics(0.08),
        "trials": trials,
        "choice": {
            "trial": f"lambda-0.6-rate-{rates[0]:g}", "temperature": 0.6, "learning_rate": rates[0],
            "epochs": 10, "best": f"lambda-0.4-rate-{rates[0]:g}",
            "deficit": {"value": 0.0004, "se": 0.0011, "low": -0.0018, "high": 0.0026},
            "reason": "It is the largest λ whose deficit to the best is at most one standard error.",
            "versus": {
                "bc": {"value": 0.0125, "low": 0.0061, "high": 0.0188, "epochs": 3, "standing": "better"},
                "top_rated": {
                    "value": 0.0031, "low": -0.0022, "high": 0.0084, "epochs": 1, "standing": "no difference",
                },
            },
            "told_from": ["bc"],
        },
        "cost": {
            "positions": positions, "seconds": positions / 7200, "full_run_positions": 900_000,
            "ratio": positions / 900_000,
        },
        "policy": "runs/search/trials/lambda-0.6/policy/best",
        "next": ["python jobs/evaluate.py policies=runs/search/trials/lambda-0.6/policy/best"],
    }  # fmt: skip


def small() -> dict[str, Any]:
    """The same with two λ and one metric, whose pictures take a moment only."""
    found = search((1e-3,), (0.4, 0.6))
    for each in found["trials"]:
        for name in NAMES[1:]:
            del each[name]
        for point in each["curve"]:
            del point["loss"]
    return found
