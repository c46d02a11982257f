"""Statistics of rewards against numpy, and the same however the events are spread over shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retilt.data.statistics import Rewards

rewards = arrays(np.float32, st.integers(1, 30), elements=st.floats(-100, 100, width=32))


@given(rewards, rewards, rewards)
def test_parts_add_up_to_the_whole(a, b, c):
    whole = Rewards.of(np.concatenate([a, b, c])).summary()
    parts = (Rewards.of(a) + Rewards.of(b) + Rewards.of(c)).summary()
    for name in ("events", "reward_min", "reward_max", "levels", "quantiles"):
        assert parts[name] == whole[name]
    assert parts["reward_mean"] == pytest.approx(whole["reward_mean"], abs=1e-9)
    assert parts["reward_sd"] == pytest.approx(whole["reward_sd"], abs=1e-6)


def test_by_hand():
    found = Rewards.of(np.array([1, 5, 5, 3], dtype=np.float32)).summary()
    assert found["levels"] == [[1.0, 1], [3.0, 1], [5.0, 2]]
    assert (found["reward_mean"], found["events"]) == (14 / 4, 4)
    assert found["reward_sd"] == pytest.approx((11 / 4) ** 0.5)
    assert len(found["quantiles"]) == 1001
    assert [found["quantiles"][i] for i in (0, 250, 251, 500, 501, 1000)] == [1, 1, 3, 3, 5, 5]


def test_many_distinct_rewards_are_rounded_but_the_range_and_the_moments_are_exact():
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    halves = [Rewards.of(values[:30_000]), Rewards.of(values[30_000:])]
    found = (halves[0] + halves[1]).summary()
    assert found["levels"] is None
    assert (found["reward_min"], found["reward_max"]) == (values.min(), values.max())
    assert found["reward_sd"] == pytest.approx(values.astype(float).std())
    np.testing.assert_allclose(found["quantiles"], np.quantile(values, np.linspace(0, 1, 1001)), rtol=2e-3, atol=1e-3)
    assert found["quantiles"] == Rewards.of(values).summary()["quantiles"]
