"""The theorems in the simulated world, under noise made to hurt, and in the worlds that attain them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from retilt.algorithms import theory
from retilt.algorithms.exp_rsft import exp_rsft_loss
from retilt.data.world import REWARD_MAX, Parameters, World

ITEMS, STATES = 1500, 12
TEMPERATURES = (0.005, 0.1, 0.5, 1.0, 4.0, 30.0)
ROUNDING = 1e-12


def simulated(noise_sd):
    """(log π_β, r*, ξ), each (STATES, ITEMS), of a world whose noise is frozen per state and item."""
    parameters = Parameters(
        items=ITEMS, exponent=1.2, offset=50, quality_mean=0.0, noise="frozen", noise_sd=noise_sd, clusters=40
    )
    world = World(parameters, seed=4)
    state = world.advance(world.start(np.arange(STATES)), np.arange(STATES) * 100)
    noise = world.frozen_noise(state, np.arange(ITEMS)[None, :])
    return world.behaviour(state).log_prob_tile(0, ITEMS), world.reward_tile(state, 0, ITEMS), noise


def hostile(radius):
    """The same with noise ε against every item of more than the mean reward, and for all others."""
    log_policy, reward, _ = simulated(1.0)
    mean = theory.value(log_policy, reward)[:, None]
    return log_policy, reward, np.where(reward > mean, -radius, radius)


WORLDS = {
    "quiet": simulated(0.3),
    "noisy": simulated(3.0),
    "hostile": hostile(2.0),
    "two items": theory.worst_two_items(1.0, 0.005, 1.95),
    "two items far apart": theory.worst_two_items(5.0, 4.0, REWARD_MAX),
}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]


def losses(world, temperature):
    """V(π_β) − V(π_λ) of each state."""
    log_policy, reward, noise = world
    tilted = theory.tilt(log_policy, reward + noise, temperature)
    return theory.value(log_policy, reward) - theory.value(tilted, reward)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_loss_of_every_state_keeps_to_every_bound(world, temperature):
    radius = np.abs(world[2]).max(axis=-1)
    loss = losses(world, temperature) - ROUNDING
    assert (loss <= theory.loss_any_temperature(radius)).all()
    sharp = theory.loss_tanh(radius, temperature, REWARD_MAX)
    exponential = theory.loss_exponential(radius, temperature, REWARD_MAX)
    linear = theory.loss_linear(radius, temperature, REWARD_MAX)
    assert (loss <= sharp).all()
    assert (sharp <= exponential).all()
    assert (exponential <= linear).all()
    assert (np.isfinite(linear) == (temperature >= 2 * radius)).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_steps_of_the_proofs(world, temperature):
    log_policy, reward, noise = world
    tilted, clean = (theory.tilt(log_policy, each, temperature) for each in (reward + noise, reward))
    gained = theory.value(tilted, reward + noise) - theory.value(log_policy, reward + noise)
    assert (gained >= temperature * theory.kl(tilted, log_policy) - 1e-9).all()  # what eq. 24 leaves out
    assert (gained >= -ROUNDING).all()  # eq. 24
    moved, radius = theory.total_variation(clean, tilted), np.abs(noise).max(axis=-1)
    assert (moved <= theory.variation_tanh(radius, temperature) + ROUNDING).all()
    assert (theory.variation_tanh(radius, temperature) <= theory.variation_exponential(radius, temperature)).all()
    # Proposition 4.1, for every state
    assert (theory.value(clean, reward) >= theory.value(log_policy, reward) - ROUNDING).all()


def test_the_worlds_are_no_easy_ones():
    """Otherwise the bounds could be wrong and the tests above would not see it."""
    assert losses(WORLDS["noisy"], 0.005).max() > 0.5
    assert losses(WORLDS["hostile"], 0.5).min() > 0.3
    assert losses(WORLDS["quiet"], 0.5).max() < 0


def test_twice_epsilon_is_attained_and_epsilon_is_not_enough():
    loss = losses(WORLDS["two items"], 0.005)
    assert 0.95 * theory.loss_any_temperature(1.0) <= loss <= theory.loss_any_temperature(1.0)
    # gap · tanh((2ε − gap) / 4λ)
    assert loss == pytest.approx(1.95 * math.tanh(0.05 / 0.02), rel=1e-9)
    largest = max(losses(theory.worst_two_items(1.0, 0.001, gap), 0.001) for gap in np.linspace(1.8, 2, 41))
    assert 1.98 < largest < 2


def test_the_tanh_bound_is_attained():
    # The total variation: two items of one reward, and the bad one's share under the tilt of r* is 1 / (1 + e^{ε/λ}).
    for radius, temperature in ((0.1, 1.0), (1.0, 1.0), (3.0, 0.5)):
        log_policy, reward, noise = theory.worst_two_items(radius, temperature, 0.0)
        tilted = theory.tilt(log_policy, reward + noise, temperature)
        sharp = theory.variation_tanh(radius, temperature)
        assert theory.total_variation(log_policy, tilted) == pytest.approx(sharp, rel=1e-9)
        assert sharp == pytest.approx(math.tanh(radius / temperature / 2))
    # The loss: a reward's range that is small beside ε and λ.
    world = theory.worst_two_items(10.0, 10.0, 0.01)
    assert 0.99 < losses(world, 10.0) / theory.loss_tanh(10.0, 10.0, 0.01) <= 1


def test_a_safe_temperature_spends_the_tolerance():
    for tolerance in (0.01, 0.5, 3.9):
        exponential = theory.safe_temperature(0.7, tolerance, 4.0)
        assert theory.loss_exponential(0.7, exponential, 4.0) == pytest.approx(tolerance, rel=1e-12)
        sharp = theory.safe_temperature_tanh(0.7, tolerance, 4.0)
        assert theory.loss_tanh(0.7, sharp, 4.0) == pytest.approx(tolerance, rel=1e-12)
        assert sharp < exponential
    assert theory.safe_temperature_tanh(0.7, 4.0, 4.0) == 0
    # 2 · .7 / ln 1.5, and .7 / (2 artanh .5) with artanh .5 = ln 3 / 2
    assert theory.safe_temperature(0.7, 2.0, 4.0) == pytest.approx(1.4 / math.log(1.5))
    assert theory.safe_temperature_tanh(0.7, 2.0, 4.0) == pytest.approx(0.7 / math.log(3))


def test_bounds_by_hand():
    # 2 |A| / δ = e², so that ε = 3 √(2 · 2)
    assert theory.noise_radius(3.0, 50, 100 / math.e**2) == pytest.approx(6)
    assert theory.loss_exponential(1.0, 2 / math.log(3), 4.0) == pytest.approx(8)  # 4 · (3 − 1)
    assert theory.loss_linear(1.0, 4.0, 4.0) == 4
    assert theory.loss_exponential(1.0, 1e-3, 4.0) == np.inf


def test_the_noise_of_a_state_leaves_the_radius_as_seldom_as_promised():
    largest = np.abs(np.random.default_rng(0).standard_normal((2000, 300))).max(axis=1)
    for failure in (0.5, 0.1):
        outside = (largest > theory.noise_radius(1.0, 300, failure)).mean()
        assert 0.05 * failure < outside < failure  # a Gaussian has lighter tails than what σ-sub-Gaussian allows


@pytest.mark.parametrize(("items", "draws"), [(100, 4000), (1000, 1000), (10_000, 400), (100_000, 60)])
def test_one_good_item_among_many_bad_ones(items, draws):
    """The theorem's order, σ √(2 ln N), is the true one.

    Measured: the *expected* loss over the noise (σ = 1, fixed per item) of π_λ with λ → 0, where π_β all but always
    takes the one good item, and this at the worst advantage g of that item. The loss is g where the noise of a bad item
    beats g plus that of the good one, and else 0. A small g is little to lose, a large one is seldom lost.
    """
    source = np.random.default_rng(items)
    bad, good = source.standard_normal((draws, items - 1)), source.standard_normal(draws)
    scale = math.sqrt(2 * math.log(items))
    expected = [
        theory.one_good_item(bad, good, np.asarray(share * scale), 1e-3).mean() for share in (0.4, 0.5, 0.6, 0.7, 0.8)
    ]
    assert 0.35 < max(expected) / scale < 0.75
    assert expected[0] < max(expected) > expected[-1]


def test_one_good_item_is_the_tilt_of_all_items():
    source = np.random.default_rng(1)
    bad, good = source.standard_normal(7), np.asarray(0.3)
    log_policy = np.log([1 - theory.RARE, *([theory.RARE / 7] * 7)])
    reward = np.array([0.8, *([0.0] * 7)])
    for temperature in (0.05, 0.1, 2.0):
        tilted = theory.tilt(log_policy, reward + np.array([good, *bad]), temperature)
        found = theory.one_good_item(bad, good, np.asarray(0.8), temperature)
        expected = theory.value(log_policy, reward) - theory.value(tilted, reward)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_value_of_a_tilt_grows_by_the_variance_of_the_reward():
    """dV(π*_λ) / d(1/λ) = Var under π*_λ of r*: central differences, good to the square of the step."""
    log_policy, reward, _ = WORLDS["quiet"]
    for inverse in (0.2, 1.0, 5.0):
        tilted = theory.tilt(log_policy, reward, 1 / inverse)
        variance = theory.value(tilted, reward**2) - theory.value(tilted, reward) ** 2
        low, high = (
            theory.value(theory.tilt(log_policy, reward, 1 / (inverse + step)), reward) for step in (-1e-4, 1e-4)
        )
        np.testing.assert_allclose((high - low) / 2e-4, variance, rtol=1e-5)


def test_a_tilt_does_not_overflow():
    log_policy = np.log([0.5, 0.5 - 1e-300, 1e-300])
    np.testing.assert_allclose(theory.tilt(log_policy, np.array([0.0, 1.0, 1.0]), 1e-9)[1:], [0, math.log(2e-300)])
    np.testing.assert_allclose(theory.tilt(log_policy, np.array([5.0, 5.0, 5.0]), 1e-9), log_policy)


LOG_POLICY = np.log([0.3, 0.25, 0.2, 0.15, 0.1])
REWARD = np.array([1.0, 3.0, 2.0, 2.0, 4.0])


def trained(deviation, temperature, events=200_000):
    """log π after training its logits by ``exp_rsft_loss`` on a log whose noise each event draws anew."""
    source = np.random.default_rng(7)
    item = source.choice(len(REWARD), size=events, p=np.exp(LOG_POLICY))
    reward = torch.from_numpy(REWARD[item] + deviation[item] * source.standard_normal(events))
    logits = torch.zeros(len(REWARD), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        log_prob = logits.log_softmax(0)[torch.from_numpy(item)]
        loss = exp_rsft_loss(log_prob, reward, temperature, float(reward.max()), normalize="batch")
        mean = loss.total / loss.count
        mean.backward()
        return mean

    optimizer.step(closure)
    return logits.detach().log_softmax(0).numpy()


def test_under_fresh_noise_of_one_size_training_tends_to_the_tilt_of_the_true_reward():
    policy = trained(np.full(5, 0.8), 1.0)
    assert theory.total_variation(policy, theory.tilt(LOG_POLICY, REWARD, 1.0)) < 0.01


def test_under_fresh_noise_of_several_sizes_training_seeks_risk():
    """The mean of exp(r̂/λ) decides: for Gaussian noise a bonus of σ²/2λ in the reward."""
    deviation, temperature = np.array([0.2, 0.2, 0.2, 1.0, 0.2]), 1.0
    policy = trained(deviation, temperature)
    equivalent = theory.certainty_equivalent(REWARD, deviation, temperature)
    assert theory.total_variation(policy, theory.tilt(LOG_POLICY, equivalent, temperature)) < 0.01
    assert theory.total_variation(policy, theory.tilt(LOG_POLICY, REWARD, temperature)) > 0.03
    # Items 2 and 3 are worth the same; the noisier gains e^{(1 − .04)/2} = 1.62 times as much.
    gain = policy - LOG_POLICY
    assert gain[3] - gain[2] == pytest.approx(0.48, abs=0.03)
