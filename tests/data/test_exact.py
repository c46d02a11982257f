"""Streaming over tiles against sums over the whole of a small catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from retilt.data.exact import evaluate, tilt
from retilt.data.world import Parameters, World

ITEMS = 53
WORLD = World(Parameters(items=ITEMS, exponent=1.2, offset=3, quality_mean=0.3, clusters=7, width=3), seed=2)
STATE = WORLD.advance(WORLD.start(np.arange(5)), np.array([3, 50, 9, 9, 20]))
POLICY = np.exp(WORLD.behaviour(STATE).log_prob_tile(0, ITEMS))
REWARD = WORLD.reward_tile(STATE, 0, ITEMS)


def value_and_kl(policy):
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * np.log(policy / POLICY), 0.0)
    return (policy * REWARD).sum(1), terms.sum(1)


@pytest.mark.parametrize("tile", [1, 7, ITEMS, 1000])
def test_a_tilt_by_tiles_is_the_tilt(tile):
    for temperature in (0.02, 0.5, 4.0):
        weight = POLICY * np.exp((REWARD - 4) / temperature)
        value, kl = value_and_kl(weight / weight.sum(1, keepdims=True))
        found = tilt(WORLD, STATE, temperature, tile)
        np.testing.assert_allclose(found.value_B, value, rtol=1e-10)
        np.testing.assert_allclose(found.kl_B, kl, rtol=1e-9)
        np.testing.assert_allclose(found.log_normaliser_B, np.log(weight.sum(1)) + 4 / temperature, rtol=1e-10)


@pytest.mark.parametrize("tile", [7, 1000])
def test_any_policy(tile):
    logit = 30 * np.random.default_rng(0).standard_normal((5, ITEMS))
    policy = np.exp(logit - np.logaddexp.reduce(logit, axis=1, keepdims=True))
    found = evaluate(WORLD, STATE, lambda each: logit[:, each.first : each.stop], tile)
    value, kl = value_and_kl(policy)
    np.testing.assert_allclose(found.value_B, value, rtol=1e-10)
    np.testing.assert_allclose(found.kl_B, kl, rtol=1e-9)


def test_the_logging_policy_is_no_distance_from_itself():
    found = evaluate(WORLD, STATE, lambda each: each.log_prob_BV, 7)
    np.testing.assert_allclose(found.value_B, (POLICY * REWARD).sum(1), rtol=1e-12)
    np.testing.assert_allclose([found.kl_B, found.log_normaliser_B], 0, atol=1e-12)


def test_a_policy_that_never_chooses_most_items():
    best = REWARD.argmax(1)
    weight = np.full((5, ITEMS), -np.inf)
    weight[np.arange(5), best] = 0
    found = evaluate(WORLD, STATE, lambda each: weight[:, each.first : each.stop], 7)
    np.testing.assert_allclose(found.value_B, REWARD.max(1), rtol=1e-12)
    np.testing.assert_allclose(found.kl_B, -np.log(POLICY[np.arange(5), best]), rtol=1e-12)


def test_the_value_of_a_tilt_grows_by_the_variance_of_the_reward():
    """dV(π*_λ) / d(1/λ) = Var under π*_λ of r*: central differences, good to the square of the step."""
    for inverse in (0.5, 2.0):
        weight = POLICY * np.exp(REWARD * inverse)
        policy = weight / weight.sum(1, keepdims=True)
        variance = (policy * REWARD**2).sum(1) - (policy * REWARD).sum(1) ** 2
        low, high = (tilt(WORLD, STATE, 1 / (inverse + step)).value_B for step in (-1e-4, 1e-4))
        np.testing.assert_allclose((high - low) / 2e-4, variance, rtol=1e-5)
