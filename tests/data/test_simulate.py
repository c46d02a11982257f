"""Simulated logs: exactly what the world says, whoever simulates them, and like the data they should resemble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from retilt.data import simulate
from retilt.data.presets import DAY, FIRST_DAY, PRESETS, Preset
from retilt.data.world import World


def small(name: str, items: int = 60, **changes) -> Preset:
    """A preset with few items and clusters."""
    preset = PRESETS[name].sized(items, changes.pop("noise", None))
    return replace(preset, world=replace(preset.world, clusters=8, width=3, **changes))


def log(preset: Preset, users: int, events: int, seed: int = 0, truth: bool = True) -> dict[str, np.ndarray]:
    """A whole log by column."""
    length_U = preset.activity.lengths(users, events, preset.most(preset.world.items), seed)
    world = World(preset.world, seed)
    found = [
        simulate.simulate(world, preset, chunk, truth) for part in simulate.plan(length_U) for chunk in part.chunks
    ]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def test_every_user_is_in_one_chunk(monkeypatch):
    monkeypatch.setattr(simulate, "CHUNK_USERS", 7)
    monkeypatch.setattr(simulate, "CHUNK_CELLS", 60)
    monkeypatch.setattr(simulate, "PART_EVENTS", 100)
    length = np.array([3, 100, *range(1, 40), 5])
    parts = simulate.plan(length)
    chunks = [chunk for part in parts for chunk in part.chunks]
    assert sorted(np.concatenate([chunk.user_B for chunk in chunks]).tolist()) == list(range(42))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert np.array_equal(chunk.length_B, length[chunk.user_B])
        assert len(chunk.user_B) == 1 or (len(chunk.user_B) <= 7 and chunk.length_B[0] * len(chunk.user_B) <= 60)
    longest = [chunk.length_B for chunk in chunks]
    assert (np.diff(np.concatenate(longest)) <= 0).all()
    assert [part.number for part in parts] == list(range(len(parts)))
    assert sum(part.events for part in parts) == length.sum()
    assert all(100 <= part.events < 100 + 160 for part in parts[:-1])


@pytest.mark.parametrize("name", ["ratings", "theory"])
def test_propensity_and_true_reward_are_those_of_the_world(name):
    """Each user's history taken again, step by step, with sums over the catalogue instead of running ones."""
    preset = small(name)
    world, events = World(preset.world, 5), log(preset, 6, 130, seed=5)
    for user in range(6):
        mine = events["user"] == user
        item, state = events["item"][mine], world.start(np.array([user]))
        for step in range(len(item)):
            policy = np.exp(world.behaviour(state).log_prob_tile(0, 60)[0])
            if preset.once:
                policy[item[:step]] = 0
            propensity = policy[item[step]] / policy.sum()
            assert events["log_propensity"][mine][step] == pytest.approx(np.log(propensity), abs=1e-9)
            true = world.reward_tile(state, 0, 60)[0, item[step]] + (1 if preset.reward == "stars" else 0)
            assert events["true_reward"][mine][step] == pytest.approx(true, abs=1e-12)
            state = world.advance(state, item[step : step + 1])


def test_an_item_is_rated_once_and_seen_again():
    ratings, watched = (log(small(name), 50, 1500) for name in ("ratings", "watch_time"))
    pairs = [np.unique(each["user"] * 60 + each["item"]) for each in (ratings, watched)]
    assert (len(pairs[0]), len(ratings["item"])) == (1500, 1500)
    assert len(pairs[1]) < 1200
    assert len(watched["item"]) == 1500


def test_what_is_chosen_does_not_depend_on_what_is_recorded():
    preset = small("ratings")
    with_truth, without = log(preset, 50, 1500), log(preset, 50, 1500, truth=False)
    assert list(without) == ["user", "item", "reward", "time"]
    assert all(np.array_equal(with_truth[name], without[name]) for name in without)
    other = log(preset, 50, 1500, seed=1)
    assert not np.array_equal(other["item"], without["item"])


def test_a_file_depends_on_its_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "CHUNK_USERS", 16)
    monkeypatch.setattr(simulate, "PART_EVENTS", 600)
    monkeypatch.setattr(simulate, "ROW_GROUP", 300)
    preset = small("ratings")
    parts = simulate.plan(preset.activity.lengths(60, 1800, 36, seed=0))
    assert len(parts) == 2
    forth, back = tmp_path / "forth", tmp_path / "back"
    for place, order in ((forth, parts), (back, parts[::-1])):
        for part in order:
            simulate.world_of.cache_clear()
            summary = simulate.write(str(place / f"{part.number}.parquet"), preset, part, 0, truth=True)
            assert (summary.users, summary.events) == (part.users, part.events)
    for part in parts:
        data = (forth / f"{part.number}.parquet").read_bytes()
        assert data == (back / f"{part.number}.parquet").read_bytes()
        file = pq.ParquetFile(forth / f"{part.number}.parquet", page_checksum_verification=True)
        assert file.metadata.num_row_groups >= 2
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        table = file.read()
        assert table.column_names == ["user", "item", "reward", "time", "true_reward", "log_propensity"]
        assert len(table) == part.events
        assert np.unique(table["user"]).tolist() == sorted(user for chunk in part.chunks for user in chunk.user_B)


@pytest.mark.parametrize(
    ("name", "unit", "tied"), [("ratings", 1, 0.575), ("books", DAY, 0.3), ("watch_time", 1, 0.0), ("theory", 1, 0.0)]
)
def test_times(name, unit, tied):
    events = log(small(name, 300), 300, 9000, truth=False)
    same = np.diff(events["user"]) == 0
    gap = np.diff(events["time"])[same]
    assert events["time"].min() >= FIRST_DAY
    assert events["time"].max() < FIRST_DAY + 12 * 365 * DAY
    assert (events["time"] % unit == 0).all()
    assert gap.min() >= 0
    assert (gap == 0).mean() == pytest.approx(tied, abs=4 * (tied * (1 - tied) / 8700) ** 0.5)


def test_noise_is_what_was_asked_for():
    """10,000 events: the mean of standard normal numbers within .04, their SD within .03."""
    fresh = log(small("theory"), 200, 10_000)
    noise = fresh["reward"] - fresh["true_reward"]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(0.5, abs=0.015)
    assert fresh["reward"].min() < 0  # not cut
    preset = small("theory", noise="rare", noise_sd=1.0)
    rare = log(preset, 200, 10_000)
    noise = (rare["reward"] - rare["true_reward"]) / World(preset.world, 0).noise_sd(rare["item"])
    assert noise.std() == pytest.approx(1, abs=0.03)


def test_frozen_noise_comes_again_with_the_item():
    events = log(small("theory", noise="frozen", drift=0.0, recency=0.0), 200, 10_000)
    noise = events["reward"] - events["true_reward"]
    assert noise.std() == pytest.approx(0.5, abs=0.03)
    pair = events["user"] * 60 + events["item"]
    order = np.argsort(pair, kind="stable")
    again = np.diff(pair[order]) == 0
    assert again.sum() > 3000
    assert np.abs(np.diff(noise[order])[again]).max() < 1e-6  # the reward is a float32
    assert np.abs(np.diff(noise[order])[~again]).mean() > 0.4


def test_hours_have_the_true_mean_and_share_the_noise_of_their_session():
    events = log(small("watch_time"), 2000, 100_000)
    ratio = events["reward"] / events["true_reward"]
    assert events["reward"].min() > 0
    assert ratio.mean() == pytest.approx(1, abs=0.02)  # 27,000 sessions of SD .53: standard error .003
    same = np.diff(events["user"]) == 0
    equal = np.abs(np.diff(np.log(ratio)))[same] < 1e-5
    assert equal.mean() == pytest.approx(0.75, abs=0.01)
    assert np.log(ratio).std() == pytest.approx(0.5, abs=0.01)


def profile(events: dict[str, np.ndarray], items: int) -> dict[str, np.ndarray]:
    """Shares of the levels of the reward, of the most popular items and of activity, as docs/data.md compares them."""
    count = np.sort(np.bincount(events["item"], minlength=items))[::-1]
    levels = np.bincount(events["reward"].astype(int), minlength=6)[1:]
    return {
        "levels": levels / levels.sum(),
        "top 1%, 10%, 50%": np.cumsum(count)[[items // 100, items // 10, items // 2]] / count.sum(),
        "activity": np.quantile(np.bincount(events["user"]), [0.1, 0.25, 0.5, 0.75, 0.9, 0.99]),
    }


def test_ratings_resemble_ml_1m():
    """Measured on ml-1m by tests/benchmarks/simulated_log.py; here a quarter of its users."""
    found = profile(log(PRESETS["ratings"].sized(3706, None), 1510, 250_000, truth=False), 3706)
    np.testing.assert_allclose(found["levels"], [0.056, 0.108, 0.261, 0.349, 0.226], atol=0.04)
    np.testing.assert_allclose(found["top 1%, 10%, 50%"], [0.087, 0.444, 0.924], atol=0.04)
    np.testing.assert_allclose(found["activity"], [27, 44, 96, 208, 400, 907], rtol=0.15)


def test_books_are_short_and_mostly_liked():
    """Targets from the paper's Table 1 (14.47 events a user) and what is known of Amazon's ratings (docs/data.md)."""
    events = log(PRESETS["books"].sized(70_000, None), 8000, 115_760, truth=False)
    found = profile(events, 70_000)
    assert found["levels"].argmax() == 4
    assert 0.5 < found["levels"][4] < 0.62
    assert 8 <= found["activity"][2] <= 9
    assert np.bincount(events["user"]).min() == 5
