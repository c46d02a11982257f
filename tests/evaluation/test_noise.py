"""The noise of rewards whose noise is known, by both estimates, in any unit and on two workers; the theory's floor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.data import small_dataset
from tests.spawning import Ranks

from retilt import ranks
from retilt.algorithms.theory import loss_exponential, loss_tanh
from retilt.data.dataset import Dataset
from retilt.data.stream import training_events
from retilt.evaluation.baselines import Baselines
from retilt.evaluation.noise import Method, Noise, estimate, floor
from retilt.evaluation.statistics import CPU
from retilt.types import InputError

REPEATED: Method = "repeated events"
RESIDUAL: Method = "residual around user and item means"
SHARDS = [[50, 50], [50, 50]]
ITEMS = 200


def write(place: Path, item_UE, reward_UE, shards=SHARDS) -> Dataset:
    """A data set of users with equally many events; with k = 1 the last two of each are held out."""
    ranks.single()
    users = [
        [(int(item), float(reward), 1_000_000 * time) for time, (item, reward) in enumerate(zip(*row, strict=True))]
        for row in zip(item_UE, reward_UE, strict=True)
    ]
    return Dataset.open(small_dataset.write(str(place), users, ITEMS, k=1, lanes=2, shards=shards))


def once(seed: int = 0, sigma: float = 1.0, interaction: float = 0.0):
    """(items, rewards), (200, 102) each: every item of a user is another one; effects as the shrinkage assumes them."""
    rng = np.random.default_rng(seed)
    item_UE = np.stack([rng.permutation(ITEMS)[:102] + 1 for _ in range(200)])
    effect_V, effect_U = rng.normal(0, sigma / 5, ITEMS + 1), rng.normal(0, sigma / math.sqrt(10), 200)
    mean_UE = 3 + effect_V[item_UE] + effect_U[:, None] + rng.normal(0, interaction, item_UE.shape)
    return item_UE, mean_UE + rng.normal(0, sigma, item_UE.shape)


def again(seed: int = 0, sigma: float = 0.5, events: int = 42):
    """Ten items a user, several events each, that the user likes very differently."""
    rng = np.random.default_rng(seed)
    item_UE = rng.integers(1, 11, (200, events))
    liked_UV = rng.normal(3, 2, (200, 11))
    mean_UE = np.take_along_axis(liked_UV, item_UE, axis=1)
    return item_UE, mean_UE + rng.normal(0, sigma, item_UE.shape)


def test_repeated_events_by_hand(tmp_path: Path) -> None:
    """60 users with events of item 1: 5, 3 and of item 2: 1, 4, 4, held out: item 1 twice. (2 + 6) / (1 + 2) = 8/3."""
    item, reward = [1, 2, 1, 2, 2, 1, 1], [5.0, 1.0, 3.0, 4.0, 4.0, 100.0, -100.0]
    dataset = write(tmp_path / "data", [item] * 60, [reward] * 60, [[30], [30]])
    noise = estimate(dataset, "select", CPU)
    assert (noise.method, noise.events) == (REPEATED, 300)
    assert noise.sd == pytest.approx(math.sqrt(8 / 3))


def test_repeated_events_tell_the_noise_whatever_else_varies(tmp_path: Path) -> None:
    """8,000 events and 6,000 degrees of freedom: a standard error of .9%, so 3% are more than three of them.

    The model of means would find the interaction, SD 2, to be noise.
    """
    noise = estimate(write(tmp_path / "data", *again()), "select", CPU)
    assert noise.method == REPEATED
    assert noise.sd == pytest.approx(0.5, rel=0.03)
    assert 7_500 < noise.events <= 8_000


def test_held_out_events_are_not_used(tmp_path: Path) -> None:
    item_UE, reward_UE = again()
    changed = reward_UE.copy()
    changed[:, -2:] += np.random.default_rng(1).normal(0, 50, (200, 2))
    first = estimate(write(tmp_path / "a", item_UE, reward_UE), "select", CPU)
    assert estimate(write(tmp_path / "b", item_UE, changed), "select", CPU) == first


@pytest.mark.parametrize(("repeats", "method"), [(99, RESIDUAL), (100, REPEATED)])
def test_a_hundred_degrees_of_freedom_are_enough(tmp_path: Path, repeats: int, method: str) -> None:
    item_UE, reward_UE = once()
    item_UE[:repeats, 1] = item_UE[:repeats, 0]
    noise = estimate(write(tmp_path / "data", item_UE, reward_UE), "select", CPU)
    assert noise.method == method
    assert noise.events == (2 * repeats if method == REPEATED else 20_000)


def test_residuals_tell_the_noise_where_the_model_is_true(tmp_path: Path) -> None:
    """20,000 events: a standard error of .5%, and the divisor is off by less (users and items apart); 2% cover both."""
    noise = estimate(write(tmp_path / "data", *once()), "select", CPU)
    assert (noise.method, noise.events) == (RESIDUAL, 20_000)
    assert noise.sd == pytest.approx(1.0, rel=0.02)


def test_the_parameters_of_few_events_are_counted(tmp_path: Path) -> None:
    """8 events of each user and about 8 of each item are 200 · 8/18 + 200 · 8/33 = 137 parameters to 1,600 events."""
    found, plain = [], []
    for seed in range(4):
        item_UE, reward_UE = once(seed)
        dataset = write(tmp_path / str(seed), item_UE[:, :10], reward_UE[:, :10])
        baselines = Baselines.fit(dataset, "select", CPU)
        residuals = [
            events.reward_P - baselines.predict(events.item_P, events.example_P)["user_item_bias"]
            for events in training_events(dataset, "select", 0, 1)
        ]
        plain.append(float(np.sqrt(np.mean(np.square(np.concatenate(residuals))))))
        found.append(estimate(dataset, "select", CPU).sd)
    # 4 × 1,600 events: a standard error of .9%.
    assert np.mean(found) == pytest.approx(1.0, rel=0.025)
    assert np.mean(plain) == pytest.approx(math.sqrt(1 - 138 / 1600), rel=0.03)  # .956


def test_residuals_count_what_the_model_misses_as_noise(tmp_path: Path) -> None:
    """Noise 1 and an interaction of SD 1 are √2 together."""
    noise = estimate(write(tmp_path / "data", *once(interaction=1.0)), "select", CPU)
    assert noise.sd == pytest.approx(math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("made", [once, again])
def test_the_noise_is_in_the_unit_of_the_reward(tmp_path: Path, made) -> None:
    """Rewards are stored as float32: 1e-4 of an SD near 3,007, far less of the estimate."""
    item_UE, reward_UE = made()
    first = estimate(write(tmp_path / "a", item_UE, reward_UE), "select", CPU)
    other = estimate(write(tmp_path / "b", item_UE, 1000 * reward_UE + 7), "select", CPU)
    assert (other.method, other.events) == (first.method, first.events)
    assert other.sd == pytest.approx(1000 * first.sd, rel=1e-4)
    one, two = floor(first, ITEMS, 4.0), floor(other, ITEMS, 4000.0)
    for name in ("sd", "radius", "tolerance", "reward_range", "floor", "floor_tanh"):
        assert two[name] == pytest.approx(1000 * one[name], rel=1e-4), name


def estimated(data: str) -> tuple[str, float, int]:
    noise = estimate(Dataset.open(data), "select", CPU)
    return noise.method, noise.sd, noise.events


@pytest.mark.parametrize("made", [once, again])
def test_the_noise_does_not_depend_on_the_workers(tmp_path: Path, two_ranks: Ranks, made) -> None:
    data = write(tmp_path / "data", *made()).uri
    method, sd, events = estimated(data)
    for found in two_ranks(estimated, data):
        assert found == (method, pytest.approx(sd, rel=1e-12), events)


def test_the_floor_of_one_to_five_stars() -> None:
    """σ = 1 and 500 items: ε = √(2 ln 20,000) = 4.4505; τ = .4 of 4: 2ε / ln 1.1 = 93.4 and ε / (2 artanh .1)."""
    noise = Noise(REPEATED, 1.0, 300)
    found = floor(noise, 500, 4.0)
    assert found == {
        "method": REPEATED,
        "sd": 1.0,
        "events": 300,
        "radius": pytest.approx(4.4505, abs=1e-4),
        "failure": 0.05,
        "tolerance": 0.4,
        "reward_range": 4.0,
        "floor": pytest.approx(93.39, abs=0.01),
        "floor_tanh": pytest.approx(22.178, abs=0.01),
    }
    assert loss_exponential(found["radius"], found["floor"], 4.0) == pytest.approx(0.4)
    assert loss_tanh(found["radius"], found["floor_tanh"], 4.0) == pytest.approx(0.4)
    assert floor(noise, 500, 4.0, failure=0.5, tolerance=1.0)["floor"] < found["floor"]


def test_rewards_without_noise_need_no_floor() -> None:
    found = floor(Noise(REPEATED, 0.0, 300), 500, 4.0)
    assert (found["radius"], found["floor"], found["floor_tanh"]) == (0, 0, 0)


def test_equal_rewards_have_no_floor() -> None:
    with pytest.raises(InputError, match="every training event has the same reward, so every λ trains like BC"):
        floor(Noise(RESIDUAL, 0.0, 300), 500, 0.0)
