"""Who wins where: Exp-RSFT or RLHF, over the reward model's error, the reward's noise and how much the log covers.

A world small enough that both optima are closed forms. A log of chosen items and noisy rewards is drawn from π_β; both
methods see that log and nothing else, but that RLHF is also given a reward model of known error:

    BC         π̂(a | s) = counts of the log, smoothed (``smoothed``)
    Exp-RSFT   the same estimate with each event counted exp(r / λ) times: the minimiser of eq. 11 under that smoothing
    RLHF       π̂(a | s) exp(r̂_RM(s, a) / λ) / Z: the maximiser of eq. 3 from the BC policy, which PPO and DPO aim at

What error a reward model has in practice depends on who fits it. As a mark on that axis, RLHF is also given the
simplest model that the log allows, shrunk item means (``item_means``).

Each λ is the one (BC itself among them) of largest value by importance sampling on held-out events of the same log,
with the BC policy as propensities (``estimated_value``); truth is looked at only to judge. What is not in it: how well
a network fits, or an optimiser finds, these optima.

Shape legend: S states, V items, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retilt.algorithms import theory
from retilt.data.draws import Draws, Floats
from retilt.data.presets import PRESETS
from retilt.data.world import Ints, World
from retilt.evaluation import student

TEMPERATURES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0)
"""λ of both methods."""
STRENGTHS = (1, 4, 16, 64, 256, 1024)
"""Pseudo-events of a state that smoothing may have; the one of the best held-out likelihood of BC is taken."""
HELD_OUT = 0.25
"""Held-out events per event of the log."""
FEWEST_HELD_OUT = 50
_TRAINING, _HELD_OUT, _ERROR = 100, 101, 102
"""What a random number is for; a part of its key, apart from those of the world."""


@dataclass(frozen=True)
class Grid:
    """The cells of the map."""

    errors: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """τ: the reward model is off by noise of SD τ/√(1 + n_a) in each state and item, n_a the item's events, and
    overrates items that the log does not have by τ besides."""
    noises: Sequence[float] = (0.25, 0.5, 1.0, 2.0)
    """σ of the noise in each logged reward."""
    coverages: Sequence[float] = (1, 4, 16, 64)
    """Logged events per item, over all states."""


@dataclass(frozen=True)
class Log:
    """E events."""

    state_E: Ints
    item_E: Ints
    reward_E: Floats


class Small:
    """A world of the preset ``theory`` in S states, with r* whole in memory."""

    def __init__(self, items: int, states: int, seed: int) -> None:
        parameters = replace(PRESETS["theory"].world, items=items, clusters=max(1, items // 10))
        world = World(parameters, seed)
        state = world.start(np.arange(states))
        self.seed = seed
        self.behaviour = world.behaviour(state)
        self.log_policy_SV = self.behaviour.log_prob_tile(0, items)
        self.reward_SV = world.reward_tile(state, 0, items)

    def log(self, events: int, noise_sd: float, purpose: int) -> Log:
        """Events whose states are even and whose items π_β chose; the noise is drawn anew for each."""
        stream, states = Draws(self.seed, purpose), len(self.reward_SV)
        state_E = (stream.uniform(events) * states).astype(np.int64)
        item_E = self.behaviour.sample(state_E, stream.uniform(events), stream.uniform(events))
        return Log(state_E, item_E, self.reward_SV[state_E, item_E] + noise_sd * stream.normal(events))

    def worth(self, policy_SV: Floats) -> float:
        """Mean over the states of the true value."""
        return float((policy_SV * self.reward_SV).sum(axis=1).mean())

    def reward_variance(self) -> float:
        """Mean over the states of the variance of r* under π_β: the error of a model that knows V(π_β) alone."""
        mean_S = theory.value(self.log_policy_SV, self.reward_SV)
        return float(theory.value(self.log_policy_SV, (self.reward_SV - mean_S[:, None]) ** 2).mean())


def counted(log: Log, weight_E: Floats, shape: tuple[int, int]) -> Floats:
    """Sum of the weights of each state's events with each item, (S, V)."""
    place_E = log.state_E * shape[1] + log.item_E
    count = np.bincount(place_E, weights=weight_E, minlength=shape[0] * shape[1])
    return np.asarray(count.reshape(shape), dtype=np.float64)


def smoothed(count_SV: Floats, strength: float) -> Floats:
    """A policy from (weighted) counts of mean weight 1: (N_sa + m q_a) / (N_s + m), (S, V).

    q are the shares of all states together, smoothed in the same way by as many pseudo-events on all items alike, so
    that states learn from each other, as those of a network do.
    """
    item_V, items = count_SV.sum(axis=0), count_SV.shape[1]
    share_V = (item_V + strength / items) / (item_V.sum() + strength)
    return np.asarray((count_SV + strength * share_V) / (count_SV.sum(axis=1, keepdims=True) + strength))


def estimated_value(policy_SV: Floats, bc_SV: Floats, held_out: Log) -> float:
    """b + mean of π/π̂ · (r − b) over held-out events, b their mean reward: importance sampling with a baseline.

    Without the baseline, mass on items that nobody has tried would count as worth 0; here it counts as worth b.
    """
    place = held_out.state_E, held_out.item_E
    mean = held_out.reward_E.mean()
    return float(mean + (policy_SV[place] / bc_SV[place] * (held_out.reward_E - mean)).mean())


@dataclass(frozen=True)
class Chosen:
    """A method's policy with the λ that validation chose, and with the best that there was."""

    gain: float
    """True value above that of BC."""
    temperature: float | None
    """None: BC itself."""
    best_gain: float
    """With the λ of the largest true value, which no one could know."""


def choose(policy: Callable[[float], Floats], bc_SV: Floats, held_out: Log, world: Small) -> Chosen:
    """The λ of largest estimated value, of those in TEMPERATURES; BC where none is estimated above it."""
    base = world.worth(bc_SV)
    best, temperature = estimated_value(bc_SV, bc_SV, held_out), None
    gain = largest = 0.0
    for each in TEMPERATURES:
        policy_SV = policy(each)
        gained = world.worth(policy_SV) - base
        largest = max(largest, gained)
        if (estimate := estimated_value(policy_SV, bc_SV, held_out)) > best:
            best, temperature, gain = estimate, each, gained
    return Chosen(gain, temperature, largest)


def exp_rsft(log: Log, strength: float, temperature: float, shape: tuple[int, int]) -> Floats:
    """The policy that minimises eq. 11 under the smoothing of BC, (S, V)."""
    weight_E = np.exp((log.reward_E - log.reward_E.max()) / temperature)
    return smoothed(counted(log, weight_E / weight_E.mean(), shape), strength)


def rlhf(bc_SV: Floats, predicted_SV: Floats, temperature: float) -> Floats:
    """The policy that maximises eq. 3 for a reward model, (S, V)."""
    return np.asarray(np.exp(theory.tilt(np.log(bc_SV), predicted_SV, temperature)))


def item_means(log: Log, items: int) -> Floats:
    """Mean reward of each item, shrunk towards the log's mean by one event of that reward, shape (V,)."""
    mean = log.reward_E.mean()
    excess_V = np.bincount(log.item_E, weights=log.reward_E - mean, minlength=items)
    return np.asarray(mean + excess_V / (1 + np.bincount(log.item_E, minlength=items)))


@dataclass(frozen=True)
class Arm:
    """RLHF with one reward model, under one seed."""

    chosen: Chosen
    rmse: float
    """Root of the reward model's mean square error under π_β."""


def rlhf_arm(bc_SV: Floats, predicted_SV: Floats, held_out: Log, world: Small) -> Arm:
    """RLHF from the BC policy with a reward model's predictions."""
    square_S = theory.value(world.log_policy_SV, (predicted_SV - world.reward_SV) ** 2)
    chosen = choose(lambda each: rlhf(bc_SV, predicted_SV, each), bc_SV, held_out, world)
    return Arm(chosen, float(np.sqrt(square_S.mean())))


@dataclass(frozen=True)
class Outcome:
    """One log, under one seed."""

    exp_rsft: Chosen
    rlhf: Sequence[Arm]
    """For each error of the reward model, then for the item means."""
    unseen: float
    """Share of the items without an event."""


def outcome(world: Small, coverage: float, noise_sd: float, errors: Sequence[float]) -> Outcome:
    """All methods on one log."""
    shape = world.reward_SV.shape
    events = max(1, round(coverage * shape[1]))
    log = world.log(events, noise_sd, _TRAINING)
    held_out = world.log(max(FEWEST_HELD_OUT, round(HELD_OUT * events)), noise_sd, _HELD_OUT)
    count_SV = counted(log, np.ones(events), shape)

    def likelihood(strength: int) -> float:
        return float(np.log(smoothed(count_SV, strength)[held_out.state_E, held_out.item_E]).sum())

    strength = max(STRENGTHS, key=likelihood)
    bc_SV = smoothed(count_SV, strength)
    ours = choose(lambda each: exp_rsft(log, strength, each, shape), bc_SV, held_out, world)
    seen_V, error_SV = count_SV.sum(axis=0), Draws(world.seed, _ERROR).normal(count_SV.size).reshape(shape)
    wrong = [error * (error_SV / np.sqrt(1 + seen_V) + (seen_V == 0)) for error in errors]
    wrong.append(item_means(log, shape[1]) - world.reward_SV)
    arms = [rlhf_arm(bc_SV, world.reward_SV + wrong_SV, held_out, world) for wrong_SV in wrong]
    return Outcome(ours, arms, float((seen_V == 0).mean()))


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95% t-interval over seeds."""
    low, high = student.interval(values)
    return {"value": float(np.mean(values)), "low": low, "high": high}


def winner(difference: Mapping[str, float | None]) -> str:
    """``exp_rsft`` where the interval of Exp-RSFT − RLHF lies above 0, ``rlhf`` below, else ``no difference``."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or low <= 0 <= high:
        return "no difference"
    return "exp_rsft" if low > 0 else "rlhf"


def compared(ours: Sequence[Chosen], theirs: Sequence[Arm]) -> dict[str, Any]:
    """Exp-RSFT against RLHF with one reward model, from the seeds of one log."""
    pairs = list(zip(ours, (arm.chosen for arm in theirs), strict=True))
    difference = interval([our.gain - their.gain for our, their in pairs])
    best = interval([our.best_gain - their.best_gain for our, their in pairs])
    return {
        "rmse": float(np.mean([arm.rmse for arm in theirs])),
        "rlhf": interval([arm.chosen.gain for arm in theirs]),
        "temperatures": [arm.chosen.temperature for arm in theirs],
        "difference": difference,
        "winner": winner(difference),
        "difference_with_best_temperatures": best,
        "winner_with_best_temperatures": winner(best),
    }


def who_wins(items: int, states: int, seeds: Sequence[int], grid: Grid) -> dict[str, Any]:
    """The map, and what is needed to read it; a seed is a world of its own."""
    worlds = [Small(items, states, seed) for seed in seeds]
    logs = []
    for coverage in grid.coverages:
        for noise in grid.noises:
            found = [outcome(world, coverage, noise, grid.errors) for world in worlds]
            ours = [each.exp_rsft for each in found]
            *cells, fitted = [compared(ours, arms) for arms in zip(*(each.rlhf for each in found), strict=True)]
            logs.append(
                {
                    "coverage": coverage,
                    "noise": noise,
                    "unseen": float(np.mean([each.unseen for each in found])),
                    "exp_rsft": interval([each.gain for each in ours]),
                    "temperatures": [each.temperature for each in ours],
                    "cells": [{"error": error, **cell} for error, cell in zip(grid.errors, cells, strict=True)],
                    "item_means": fitted,
                }
            )
    return {
        "items": items,
        "states": states,
        "seeds": list(seeds),
        "temperatures": list(TEMPERATURES),
        "reward_sd": float(np.sqrt(np.mean([world.reward_variance() for world in worlds]))),
        "logs": logs,
    }
