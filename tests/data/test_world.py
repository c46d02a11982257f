"""The simulated world against its definition written out, and what may not change it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from retilt.data.draws import Draws
from retilt.data.world import REWARD_MAX, Parameters, World

SMALL = Parameters(items=50, exponent=1.2, offset=3, quality_mean=0.3, clusters=7, width=3, drift=0.1)


def travelled(world, users=6, steps=5):
    """States after a few choices, and the choices, shape (steps, users)."""
    state, stream, chosen = world.start(np.arange(users)), Draws(1), []
    for _ in range(steps):
        drawn = world.behaviour(state).sample(np.arange(users), stream.uniform(users), stream.uniform(users))
        state = world.advance(state, drawn)
        chosen.append(drawn)
    return state, np.array(chosen)


def brute(world, state):
    """(π_β, r*) of every item in every state by the formulas of the module's docstring, item by item."""
    parameters, popularity = world.parameters, np.diff(world.cumulative_V1)
    policy, reward = np.empty((2, len(state.id_B), parameters.items))
    for user in range(len(state.id_B)):
        taste = state.taste_BD[user]
        weight, mass = [], []
        for cluster in range(parameters.clusters):
            inside = popularity[world.cluster_V == cluster].sum()
            preference = float(taste @ world.center_DC[:, cluster])
            logit = parameters.affinity * preference + parameters.recency * state.share_BC[user, cluster]
            weight.append(inside * math.exp(logit))
            mass.append(inside)
        for item in range(parameters.items):
            cluster = world.cluster_V[item]
            policy[user, item] = weight[cluster] / sum(weight) * popularity[item] / mass[cluster]
            taste_for = float(taste @ (world.center_DC[:, cluster] + world.interest_VD[item]))
            logit = world.quality_V[item] + state.bias_B[user] + taste_for
            reward[user, item] = 4 / (1 + math.exp(-logit))
    return policy, reward


def test_policy_and_reward_are_those_of_the_formulas():
    world = World(SMALL, seed=3)
    state, _ = travelled(world)
    policy, reward = brute(world, state)
    behaviour = world.behaviour(state)
    np.testing.assert_allclose(policy.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(behaviour.log_prob_tile(0, 50)), policy, rtol=1e-11)
    np.testing.assert_allclose(np.exp(behaviour.log_prob_tile(11, 31)), policy[:, 11:31], rtol=1e-11)
    np.testing.assert_allclose(world.reward_tile(state, 11, 31), reward[:, 11:31], rtol=1e-11)
    item = np.array([0, 49, 7, 7, 30, 12])
    np.testing.assert_allclose(np.exp(behaviour.log_prob(item)), policy[np.arange(6), item], rtol=1e-11)
    np.testing.assert_allclose(world.reward(state, item), reward[np.arange(6), item], rtol=1e-11)
    per_cluster = np.random.default_rng(0).random((6, 7))
    np.testing.assert_allclose(behaviour.mean(per_cluster), (policy * per_cluster[:, world.cluster_V]).sum(1))
    assert reward.min() > 0
    assert reward.max() < REWARD_MAX


def test_a_choice_moves_taste_and_shares():
    world = World(SMALL, seed=3)
    start = world.start(np.array([5]))
    cluster = world.cluster_V[20]
    once = world.advance(start, np.array([20]))
    twice = world.advance(once, np.array([20]))
    home, center = start.taste_BD[0], world.center_DC[:, cluster]
    np.testing.assert_allclose(once.taste_BD[0], 0.9 * home + 0.1 * (home + center))
    np.testing.assert_allclose(twice.taste_BD[0], home + 0.19 * center)
    assert twice.share_BC[0, cluster] == pytest.approx(0.8 * 0.2 + 0.2)
    assert twice.share_BC.sum() == pytest.approx(0.36)
    assert len({int(state.id_B[0]) for state in (start, once, twice)}) == 3


def test_draws_follow_the_policy():
    """Pearson's statistic over all items of one state, against its mean + 4 standard deviations."""
    world = World(SMALL, seed=4)
    state, _ = travelled(world, users=3)
    draws, stream = 200_000, Draws(9)
    item = world.behaviour(state).sample(np.full(draws, 1), stream.uniform(draws), stream.uniform(draws))
    expected = draws * np.exp(world.behaviour(state).log_prob_tile(0, 50)[1])
    statistic = ((np.bincount(item, minlength=50) - expected) ** 2 / expected).sum()
    assert statistic < 49 + 4 * math.sqrt(2 * 49)


def test_the_ends_of_the_interval_are_items():
    world = World(SMALL, seed=4)
    behaviour = world.behaviour(world.start(np.arange(3)))
    last = 1 - 2.0**-53
    for state in range(3):
        row = np.array([state])
        assert behaviour.sample(row, np.array([0.0]), np.array([0.0])) == [0]
        assert behaviour.sample(row, np.array([last]), np.array([last])) == [49]


def test_a_user_is_the_same_in_any_company():
    world = World(SMALL, seed=3)
    together, alone = world.start(np.arange(100)), World(SMALL, seed=3).start(np.array([42]))
    for name in ("id_B", "bias_B", "taste_BD"):
        assert np.array_equal(getattr(together, name)[42:43], getattr(alone, name))
    assert not np.array_equal(World(SMALL, seed=4).start(np.array([42])).taste_BD, alone.taste_BD)


def test_choices_stay_those_of_earlier_versions():
    """Golden: another NumPy, or a change of the code, that altered simulated logs would show here."""
    _, chosen = travelled(World(SMALL, seed=0), users=8, steps=2)
    assert chosen.tolist() == GOLDEN


GOLDEN = [[16, 6, 6, 29, 11, 38, 16, 37], [23, 23, 4, 2, 6, 39, 29, 40]]


def test_every_item_of_a_large_catalogue_can_be_chosen():
    world = World(Parameters(items=300_000, exponent=2.5, offset=420, quality_mean=0), seed=0)
    log_prob = world.behaviour(world.start(np.arange(2))).log_prob_tile(0, 300_000)
    assert np.isfinite(log_prob).all()
    np.testing.assert_allclose(np.exp(log_prob).sum(1), 1, rtol=1e-9)
    # The law: popularity by rank is (rank + offset)^-exponent, whichever item has the rank.
    law = (np.arange(300_000) + 420.0) ** -2.5
    popularity = np.diff(world.cumulative_V1)
    np.testing.assert_allclose(np.sort(popularity)[::-1][:1000], (law / law.sum())[:1000], rtol=1e-9)
    assert np.argmax(popularity) == np.argmin(world.rank_V)


def test_popular_items_are_better_and_clickbait_is_worse():
    """Of 100,000 items: the standard error of a correlation is .003."""
    base = Parameters(items=100_000, exponent=1.2, offset=50, quality_mean=0.3, correlation=0.6, clickbait=0)
    plain = World(base, seed=0)
    popularity = np.log(np.diff(plain.cumulative_V1))
    assert np.corrcoef(popularity, plain.quality_V)[0, 1] == pytest.approx(0.6, abs=0.01)
    chosen = np.diff(plain.cumulative_V1) @ plain.quality_V
    assert chosen == pytest.approx(0.3, abs=0.05)  # 1 / Σ popularity² = 390 items count: standard error .03
    assert plain.quality_V.std() == pytest.approx(0.7, abs=0.01)
    baited = World(replace(base, clickbait=0.05), seed=0)
    bait = baited.quality_V < plain.quality_V - 1
    assert bait.mean() == pytest.approx(0.05, abs=0.003)
    # More exposure for them makes what is chosen less popular for its own sake: all are centred anew, by the same.
    shift = (baited.quality_V - plain.quality_V)[~bait]
    np.testing.assert_allclose(shift, shift[0], atol=1e-12)
    np.testing.assert_allclose((baited.quality_V - plain.quality_V)[bait], shift[0] - 1.5, atol=1e-12)
    # Alone, log popularity + 2 would divide a rank by e^(2 / 1.2) = 5.3.
    assert np.median(baited.rank_V[bait]) < np.median(plain.rank_V[bait]) / 4


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_frozen_noise_is_fixed_by_state_and_item(drift):
    world = World(replace(SMALL, noise="frozen", noise_sd=0.7, drift=drift, recency=0.0), seed=3)
    state = world.start(np.arange(400))
    item = np.arange(400) % 50
    noise = world.frozen_noise(state, item)
    everything = world.frozen_noise(state, np.arange(50)[None])
    assert np.array_equal(everything[np.arange(400), item], noise)
    assert everything.std() == pytest.approx(0.7, abs=0.02)  # 20,000 numbers: standard error .0035
    assert abs(np.corrcoef(everything[:-1].ravel(), everything[1:].ravel())[0, 1]) < 0.03
    again = world.frozen_noise(world.advance(state, item), item)
    assert np.array_equal(again, noise) == (drift == 0)  # without drift and recency the state is the same as before


def test_noise_of_rare_items_is_larger():
    world = World(replace(SMALL, noise="rare", noise_sd=0.5), seed=3)
    by_rank = np.argsort(world.rank_V)
    np.testing.assert_allclose(world.noise_sd(by_rank[[0, 25, 49]]), [0.3, 0.3 + 0.5 * 25 / 50, 0.3 + 0.5 * 49 / 50])
    assert np.array_equal(World(SMALL, seed=3).noise_sd(by_rank[:2]), [0.5, 0.5])
