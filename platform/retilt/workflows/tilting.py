"""The theorems' bounds beside what noise really costs: in the simulated world, and in worlds made to attain them.

Shape legend: S states, V items, L temperatures, E events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retilt.algorithms import theory
from retilt.data.draws import Draws, Floats
from retilt.data.presets import PRESETS
from retilt.data.world import REWARD_MAX, Noise, World

TEMPERATURES = tuple(float(each) for each in np.geomspace(0.02, 60, 31).round(4))
NOISES = (0.5, 1.0, 2.0, 4.0)
"""σ, beside rewards in [0, 4]."""
TOLERANCES = (0.1, 0.5, 1.0)
"""τ of eq. 15."""
ATTAINED = (0.001, 0.01, 0.1, 1.0)
"""λ/ε at which the worst world of two items is worked out."""
_GOOD, _BAD, _FRESH = 103, 104, 105
"""What a random number is for; a part of its key, apart from those of the world."""


def frozen(items: int, states: int, seed: int, noise_sd: float) -> tuple[Floats, Floats, Floats]:
    """(log π_β, r*, ξ), each (S, V), of the preset ``theory`` with noise that state and item determine."""
    world = World(replace(PRESETS["theory"].world, items=items, noise="frozen", noise_sd=noise_sd), seed)
    state = world.start(np.arange(states))
    noise_SV = world.frozen_noise(state, np.arange(items)[None, :])
    return world.behaviour(state).log_prob_tile(0, items), world.reward_tile(state, 0, items), noise_SV


def largest_two_item_loss(radius: float, temperature: float, reward_range: float) -> float:
    """The most that two items lose under noise within ε: what no bound at this λ can be below."""
    gap = np.linspace(0, min(reward_range, 2 * radius), 401)[1:]
    log_policy, reward, noise = theory.worst_two_items(radius, temperature, gap)
    tilted = theory.tilt(log_policy, reward + noise, temperature)
    return float((theory.value(log_policy, reward) - theory.value(tilted, reward)).max())


def against_bounds(items: int, states: int, seed: int, noise_sd: float) -> dict[str, Any]:
    """Losses V(π_β) − V(π_λ) over λ beside what the theorems allow, ε being the largest noise of any of the states."""
    log_policy_SV, reward_SV, noise_SV = frozen(items, states, seed, noise_sd)
    base_S, radius = theory.value(log_policy_SV, reward_SV), float(np.abs(noise_SV).max())
    loss_LS, clean_LS = (
        np.array([base_S - theory.value(theory.tilt(log_policy_SV, each, at), reward_SV) for at in TEMPERATURES])
        for each in (reward_SV + noise_SV, reward_SV)
    )
    return {
        "noise": noise_sd,
        "radius": radius,
        "radius_95": theory.noise_radius(noise_sd, items * states, 0.05),
        "value_of_behaviour": float(base_S.mean()),
        "largest_loss": loss_LS.max(axis=1).tolist(),
        "mean_loss": loss_LS.mean(axis=1).tolist(),
        "mean_loss_without_noise": clean_LS.mean(axis=1).tolist(),
        "two_items": [largest_two_item_loss(radius, each, REWARD_MAX) for each in TEMPERATURES],
        "any_temperature": float(theory.loss_any_temperature(radius)),
        "exponential": _bound(theory.loss_exponential, radius),
        "linear": _bound(theory.loss_linear, radius),
        "tanh": _bound(theory.loss_tanh, radius),
        "best_temperature": TEMPERATURES[int(loss_LS.mean(axis=1).argmin())],
        "tolerances": [_safe(radius, tolerance, loss_LS.max(axis=1)) for tolerance in TOLERANCES],
    }


def _bound(bound: Callable[[float, Floats, float], Floats], radius: float) -> list[float | None]:
    """A bound at each λ; None where it is infinite."""
    found = bound(radius, np.array(TEMPERATURES), REWARD_MAX).tolist()
    return [each if math.isfinite(each) else None for each in found]


def _safe(radius: float, tolerance: float, largest_L: Floats) -> dict[str, float]:
    """λ that keep the loss within a tolerance: by the bounds, and the smallest of the grid from which on it does."""
    above = np.flatnonzero(largest_L > tolerance)
    return {
        "tolerance": tolerance,
        "equation_15": theory.safe_temperature(radius, tolerance, REWARD_MAX),
        "tanh": theory.safe_temperature_tanh(radius, tolerance, REWARD_MAX),
        "realised": TEMPERATURES[above[-1] + 1] if len(above) else TEMPERATURES[0],
    }


def attained() -> list[dict[str, float]]:
    """How much of 2ε, the bound of every λ, two items lose; for rewards without a range."""
    return [{"temperature": each, "ratio": largest_two_item_loss(1.0, each, 2.0) / 2} for each in ATTAINED]


def one_good_item(catalogues: Sequence[int], seed: int, numbers: int) -> list[dict[str, float]]:
    """The expected loss at λ → 0 where one item is good, at the worst advantage of it, in units of σ √(2 ln N).

    ``numbers`` random numbers are used for each catalogue, so that larger ones have fewer draws of their noise.
    """
    found = []
    for items in catalogues:
        draws = max(1, numbers // items)
        good = Draws(seed, _GOOD, items).normal(draws)
        bad = Draws(seed, _BAD, items).normal(draws * (items - 1)).reshape(draws, items - 1)
        scale = np.sqrt(2 * np.log(items))
        losses = {
            share: float(theory.one_good_item(bad, good, np.asarray(share * scale), 1e-3).mean() / scale)
            for share in np.linspace(0.4, 0.8, 9).round(3).tolist()
        }
        worst = max(losses, key=losses.__getitem__)
        found.append({"items": items, "draws": draws, "advantage": worst, "ratio": losses[worst]})
    return found


def fresh(noise: Noise, events: Sequence[int], seed: int, temperature: float = 1.0, items: int = 50) -> dict[str, Any]:
    """What Exp-RSFT tends to where each event's noise is drawn anew: the optimum of eq. 11 on longer and longer logs.

    It is that of one state. With ``noise`` "fresh" all items have the same noise, with "rare" unpopular ones more.
    """
    world = World(replace(PRESETS["theory"].world, items=items, noise=noise, noise_sd=0.9), seed)
    state, item_V = world.start(np.arange(1)), np.arange(items)
    behaviour = world.behaviour(state)
    log_policy_V, reward_V = behaviour.log_prob_tile(0, items)[0], world.reward_tile(state, 0, items)[0]
    deviation_V = world.noise_sd(item_V)
    equivalent_V = theory.certainty_equivalent(reward_V, deviation_V, temperature)
    limit_V, true_V = (theory.tilt(log_policy_V, each, temperature) for each in (equivalent_V, reward_V))
    rows = []
    for number in events:
        stream = Draws(seed, _FRESH, number)
        item_E = behaviour.sample(np.zeros(number, dtype=np.int64), stream.uniform(number), stream.uniform(number))
        observed_E = reward_V[item_E] + deviation_V[item_E] * stream.normal(number)
        weight_E = np.exp((observed_E - observed_E.max()) / temperature)
        weight_V = np.bincount(item_E, weights=weight_E, minlength=items)
        with np.errstate(divide="ignore"):  # an item without event has probability 0
            trained_V = np.log(weight_V / weight_V.sum())
        distances = {name: float(theory.total_variation(trained_V, each)) for name, each in _ends(limit_V, true_V)}
        rows.append({"events": number, **distances})
    return {
        "noise": noise,
        "temperature": temperature,
        "between": float(theory.total_variation(limit_V, true_V)),
        "value": {name: float(theory.value(each, reward_V)) for name, each in _ends(limit_V, true_V)},
        "noise_sd": {name: float(theory.value(each, deviation_V)) for name, each in _ends(limit_V, true_V)},
        "value_of_behaviour": float(theory.value(log_policy_V, reward_V)),
        "noise_sd_of_behaviour": float(theory.value(log_policy_V, deviation_V)),
        "logs": rows,
    }


def _ends(limit_V: Floats, true_V: Floats) -> list[tuple[str, Floats]]:
    """The tilt of λ ln E exp(r̂/λ), and that of r*."""
    return [("limit", limit_V), ("true_tilt", true_V)]
