"""Made-up results: a small world in which every arm's strength is known, put together as the workflow does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from retilt.evaluation.metrics import metrics
from retilt.evaluation.reproduction import seeds
from retilt.evaluation.statistics import Tally

GROUPS = ("all", "high_reward", "untied", "low_reward", "within/activity_low", "within/activity_high")
STRENGTH = {
    "bc": 1.0, "bc_continued": 1.02, "rsft": 1.2, "exp_rsft": 1.5, "top_rated": 1.25, "tilt_item": 1.1, "dpo": 0.9,
    "dpo_paper": 0.2, "ppo": 0.85, "ppo_paper": 0.4, "tilt_rm": 1.0, "exp_rsft_permuted": 1.0,
    "exp_rsft_item_mean": 1.15, "exp_rsft_at_rsft_ess": 1.2,
}  # fmt: skip
SCORES = {"dpo": 4.2, "dpo_paper": 4.6, "ppo": 4.3, "ppo_paper": 4.5}
SWEEP = {0.1: 0.9, 0.25: 1.2, 0.5: 1.5, 1.0: 1.35, 2.0: 1.1}


def tally(strength: float, seed: int, users: int = 400, replicates: int = 200) -> Tally:
    """A policy that ranks targets the higher the stronger it is; the same targets for every strength and seed."""
    world, noise = np.random.default_rng(0), np.random.default_rng(100 + seed)
    user_P = torch.from_numpy(np.repeat(np.arange(users), 5))
    scale_P = np.exp(world.normal(3.2, 1, users))[user_P] * world.exponential(1, len(user_P))
    rank_P = torch.from_numpy(1 + (scale_P * np.exp(noise.normal(0, 0.1, len(user_P))) / strength**3).astype(np.int64))
    found = Tally(GROUPS, replicates, 0)
    place = torch.arange(len(user_P))
    high_P = place % 5 < 2
    member_GP = torch.stack(
        [place >= 0, high_P, user_P % 2 == 0, place % 5 == 4, high_P & (user_P < 200), high_P & (user_P >= 200)]
    )
    found.add(user_P, member_GP, metrics(rank_P), rank_P < 0)
    return found


def arms(count: int = 3) -> dict[str, dict[int, Tally]]:
    return {arm: {s: tally(strength, s) for s in range(count)} for arm, strength in STRENGTH.items()}


def scored(score: float, seed: int, users: int = 50) -> Tally:
    """What two reward models say of a policy's samples: the training one ``score`` on average."""
    found = Tally(("all",), 200, 0, names=("training", "judge", "entropy"))
    user_P = torch.arange(users)
    noise_P = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.05, users))
    value_PM = torch.stack([score + noise_P, 3.5 + 0.1 * noise_P, 0.5 + 0 * noise_P], dim=1)
    found.add(user_P, user_P[None] >= 0, value_PM, user_P < 0)
    return found


def kind(arm: str) -> str:
    if arm.endswith("_paper"):
        return "paper-like"
    return "control" if arm.startswith(("exp_rsft_", "tilt_")) else "tuned"


def measure(value: float, reach: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def audit(mse: float, mae: float) -> dict[str, Any]:
    """Errors of a predictor; the item mean's are .9 and .75."""
    paired = {"mse": measure(mse - 0.9, 0.02), "mae": measure(mae - 0.75, 0.02)}
    return {"mse": measure(mse, 0.03), "mae": measure(mae, 0.03), "versus_item_mean": paired}


TOLD_AS_MUCH = {"mse": measure(-0.04, 0.03), "mae": measure(0.01, 0.03)}


def curve(arm: str, test: Any, count: int) -> list[dict[str, Any]]:
    start, end = 0.13, test["high_reward"]["ndcg@10"]["value"]
    points = []
    for seed in range(count):
        for epoch in range(6):
            share = 1 - 0.5**epoch
            value = start + (end - start) * share + 0.002 * seed
            score = 3.8 + (SCORES.get(arm, 3.9) - 3.8) * share + 0.02 * seed
            points.append({"epoch": epoch, "seed": seed, "ndcg@10": value, "avg_reward": score, "kl": 2 * share})
    return points


def tried(arm: str, test: Any) -> list[dict[str, Any]]:
    """A trial that was chosen, one that lost and one that failed, of a tuned arm."""
    if kind(arm) != "tuned" or arm == "bc":
        return []
    chosen = {"name": "temperature-0.5-rate-1", "epochs": 10, "best_epoch": 4, "value": 0.2, "chosen": True}
    lost = {"name": "temperature-0.12-rate-1", "epochs": 2, "best_epoch": 1, "value": 0.1}
    failed = {"name": "temperature-0.01-rate-1", "epochs": 2, "failed": "the weights leave too little"}
    return [{**chosen, "end_of_grid": False}, {**lost, "curve": curve(arm, test, 1)}, failed]


def results(count: int = 3) -> dict[str, Any]:
    """Everything was run, with ``count`` seeds."""
    tallies = arms(count)
    tested = seeds.of_arms(tallies)
    scores = seeds.of_arms({arm: {s: scored(SCORES.get(arm, 3.9), s) for s in range(count)} for arm in STRENGTH})
    found: dict[str, Any] = {
        "preset": "ml-1m",
        "dataset": {
            "name": "toy", "users": 6040, "items": 3706, "events": 1_000_209, "fingerprint": "f" * 64,
            "uri": "data/toy", "events_per_user": 165.6,
            "histogram": [[1, 56174], [2, 107557], [3, 261197], [4, 348971], [5, 226310]],
        },
        "protocol": {
            "split": "last_k", "k": 10, "min_reward": 4.5, "seeds": list(range(count)), "epochs": 10, "trials": 8,
            "headline": "high_reward", "commands": ["python jobs/reproduce.py preset=ml-1m seeds=3 output=runs/x"],
        },
        "identity": {
            "code": {"retilt": "0.1.0", "source_sha256": "a" * 64, "torch": "2.13"},
            "bootstrap": {"replicates": 200, "seed": 0},
        },
        "audit": {
            "user_mean": audit(1.08, 0.82), "item_mean": audit(0.9, 0.75), "global_mean": audit(1.24, 0.93),
            "user_item_bias": audit(0.85, 0.72), "reward_model": audit(1.3, 0.87),
            "strong": {**audit(0.8, 0.7), "versus_user_item_bias_so_far": TOLD_AS_MUCH},
        },
        "arms": {
            arm: {
                "arm": kind(arm), "algorithm": {"name": "exp_rsft", "temperature": 0.5}, "learning_rate": 1e-3,
                "trials": 8, "positions": 12_000_000, "seconds": 3600.5, "test": tested[arm],
                "avg_reward": scores[arm]["all"], "pairwise_accuracy": measure(0.6),
                "lists": {"coverage@10": measure(0.4), "gini@10": measure(0.8), "popularity_lift": measure(1.2)},
                "curve": curve(arm, tested[arm], count), "tried": tried(arm, tested[arm]),
            }
            for arm in STRENGTH
        },
        "primary": seeds.primary(tallies, "high_reward"),
        "alarms": [
            {"arm": "ppo", "trial": "temperature-0.12-rate-1", "chosen": False, "seed": 0, "kind": "hacking",
             "epochs": [2, 3], "evidence": "since the start score +0.3, NDCG@10 −0.04"},
        ],
        "reward_models": {"reward_model": {"positions": 1_000_000, "seconds": 60.0}},
        "not_run": [{"what": "30 epochs", "why": "ten were run; preset=ml-1m epochs=30 runs them"}],
    }  # fmt: skip
    best = {value: {s: tally(strength, s) for s in range(count)} for value, strength in SWEEP.items()}
    last = {value: {s: tally(0.9 * strength, s) for s in range(count)} for value, strength in SWEEP.items()}
    opponents = {arm: tallies[arm] for arm in ("bc", "top_rated")}
    sweep = seeds.temperatures({"best": best, "last": last}, 0.5, "high_reward", opponents)
    found["lambda"] = [{**each, "ess": 0.1 + 0.2 * i} for i, each in enumerate(sweep)]
    found["shifts"] = shifts(count)
    return found


def shifts(count: int) -> list[dict[str, Any]]:
    """λ = .5 is the best without noise, λ = 1 with it."""
    entries = ((0.0, {"0.5": 0.15, "1": 0.14}), (1.0, {"0.5": 0.12, "1": 0.13}))
    return [
        {
            "kind": "noise", "amount": amount, "grid": [[float(t), value] for t, value in curve.items()],
            "chosen": {str(s): float(max(curve, key=curve.__getitem__)) for s in range(count)},
            "curves": {str(s): {t: value + s / 1000 for t, value in curve.items()} for s in range(count)},
        }
        for amount, curve in entries
    ]  # fmt: skip
