"""What a policy is worth in the simulated world, exactly: one pass over tiles of items, never states × catalogue.

Shape legend: B states, V items of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retilt.data.draws import Floats
from retilt.data.world import State, World

TILE = 1 << 12
"""Items that are worked on at once."""


@dataclass(frozen=True)
class Tile:
    """The items ``first … stop − 1`` in each state."""

    first: int
    stop: int
    log_prob_BV: Floats
    """log π_β."""
    reward_BV: Floats
    """r*."""


@dataclass(frozen=True)
class Exact:
    """Of a policy π, in each state."""

    value_B: Floats
    """Mean of r* under π."""
    kl_B: Floats
    """KL(π ‖ π_β), in nats."""
    log_normaliser_B: Floats
    """Log of the sum of the weights that π was given by; log Z of eq. 7 for a tilt."""


def evaluate(world: World, state: State, log_weight: Callable[[Tile], Floats], tile: int = TILE) -> Exact:
    """Value and KL of the policy π ∝ exp(log_weight), which may be −∞ for items that π never chooses.

    ``log_weight`` returns an array of the tile's shape. π_β itself is ``lambda tile: tile.log_prob_BV``.
    """
    behaviour, states = world.behaviour(state), len(state.id_B)
    top_B = np.full(states, -np.inf)
    sum_3B = np.zeros((3, states))
    for first in range(0, world.parameters.items, tile):
        stop = min(first + tile, world.parameters.items)
        now = Tile(first, stop, behaviour.log_prob_tile(first, stop), world.reward_tile(state, first, stop))
        weight_BV = log_weight(now)
        before_B, top_B = top_B, np.maximum(top_B, weight_BV.max(axis=1))
        shift_B = np.where(np.isfinite(top_B), top_B, 0.0)
        mass_BV = np.exp(weight_BV - shift_B[:, None])
        ratio_BV = np.where(mass_BV > 0, weight_BV - now.log_prob_BV, 0.0)
        added_3B = [each.sum(axis=1) for each in (mass_BV, mass_BV * now.reward_BV, mass_BV * ratio_BV)]
        sum_3B = sum_3B * np.exp(before_B - shift_B) + added_3B
    mass_B, reward_B, ratio_B = sum_3B
    log_normaliser_B = top_B + np.log(mass_B)
    return Exact(reward_B / mass_B, ratio_B / mass_B - log_normaliser_B, log_normaliser_B)


def tilt(world: World, state: State, temperature: float, tile: int = TILE) -> Exact:
    """Value and KL of π* ∝ π_β · exp(r*/λ), the optimum of eq. 7 with the true reward."""
    return evaluate(world, state, lambda each: each.log_prob_BV + each.reward_BV / temperature, tile)
