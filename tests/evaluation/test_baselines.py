"""Means and biases of training rewards against sums written out, and the audit built on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.data import small_dataset

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.evaluation import audit
from retilt.evaluation.baselines import PREDICTORS, Baselines, item_rewards
from retilt.evaluation.statistics import CPU
from retilt.types import Batch

SECOND = 1_000_000
BASELINES = {"global_mean", "item_mean", "user_mean", "user_item_bias", "user_item_bias_so_far"}
USERS = [  # with k = 1 the last event is test, the one before it validation
    [(1, 5.0, 0), (2, 3.0, SECOND), (1, 2.0, 2 * SECOND), (2, 1.0, 3 * SECOND)],
    [(1, 4.0, 0), (2, 1.0, SECOND), (3, 5.0, 2 * SECOND)],
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    ranks.single()
    return Dataset.open(small_dataset.write(str(tmp_path / "data"), USERS, 4, k=1, lanes=1, shards=[[2]]))


def test_everything_is_fitted_to_training_events(dataset: Dataset) -> None:
    """Training: (1, 5), (2, 3) of the first user and (1, 4) of the second. Mean 4; residuals of item 1: 1 + 0."""
    sum_V, count_V = item_rewards(dataset, "select", CPU)
    assert (sum_V.tolist(), count_V.tolist()) == ([0, 9, 3, 0, 0], [0, 2, 1, 0, 0])
    of_second = item_rewards(dataset, "select", CPU, lambda example: example == 1)
    assert (of_second[0].tolist(), of_second[1].tolist()) == ([0, 4, 0, 0, 0], [0, 1, 0, 0, 0])
    found = Baselines.fit(dataset, "select", CPU).predict(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1]))
    assert tuple(found) == PREDICTORS
    assert found["global_mean"].tolist() == [4, 4, 4]
    assert found["item_mean"].tolist() == [4.5, 3, 4]
    assert found["user_mean"].tolist() == [4, 4, 4]
    first, second = 1 / 27, -1 / 26
    user = [(0 - first - second) / 12, (0 - first) / 11]
    wanted = [4 + first + user[0], 4 + second + user[1], 4 + user[1]]
    assert found["user_item_bias"].tolist() == pytest.approx(wanted)


class Constant:
    """Predicts the same for everything."""

    def __init__(self, reward: float) -> None:
        self.reward = reward

    def score(self, batch: Batch, item_PK: torch.Tensor) -> torch.Tensor:
        return torch.full(item_PK.shape, self.reward)


def test_an_audit_compares_on_the_same_events_and_warns_aloud(data: str) -> None:
    dataset = Dataset.open(data)
    ranks.single()

    def batches():
        return evaluation_batches(dataset, "test", 20, "none", 12, 0, 1)

    baselines = Baselines.fit(dataset, "select", CPU)
    tallies = audit.baseline_errors(baselines, batches(), 200, 0)
    tallies["reward_model"] = audit.errors(Constant(5.0), batches(), 200, 0)
    tallies["strong"] = audit.errors(Constant(baselines.mean), batches(), 200, 0)
    found = audit.build(tallies)
    reward_P = torch.cat([batch.target_reward_P for batch in batches()]).double()
    assert found["reward_model"]["mse"]["value"] == pytest.approx((reward_P - 5).square().mean().item())
    assert found["reward_model"]["mae"]["value"] == pytest.approx((reward_P - 5).abs().mean().item())
    worse = found["reward_model"]["versus_global_mean"]["mse"]
    assert worse["low"] > 0
    assert worse["value"] == pytest.approx(found["reward_model"]["mse"]["value"] - found["global_mean"]["mse"]["value"])
    assert found["strong"]["versus_global_mean"]["mse"]["value"] == pytest.approx(0, abs=1e-6)
    for name, each in found.items():
        assert {key for key in each if key.startswith("versus_")} == {f"versus_{other}" for other in BASELINES - {name}}
    biases = found["reward_model"]["versus_user_item_bias"]["mae"]
    assert biases["value"] == pytest.approx(
        found["reward_model"]["mae"]["value"] - found["user_item_bias"]["mae"]["value"]
    )
    first, second = (each for each in audit.warnings(found) if each.startswith("reward_model"))
    assert first.startswith("reward_model is WORSE than predicting the mean of all rewards: MSE")
    assert "MAE" in second
    lines = audit.table(found)
    assert len(lines) == 8
    assert lines[-1].startswith("reward_model")


def test_a_baseline_is_told_the_rewards_so_far_as_strong_is(data: str) -> None:
    """Summed event by event, those before the target in its window alone."""
    dataset = Dataset.open(data)
    ranks.single()
    baselines = Baselines.fit(dataset, "refit", CPU)
    bias_V = baselines.item_bias_V.tolist()
    expected: list[float] = []
    found: list[float] = []
    for batch in evaluation_batches(dataset, "test", 9, "none", 12, 0, 1):
        found += audit.so_far(baselines, batch).tolist()
        for b, length in enumerate(batch.length_B.tolist()):
            item, reward = batch.item_BT[b].tolist(), batch.reward_BT[b].tolist()
            for t in range(length):
                if batch.supervised_BT[b, t]:
                    past = sum(reward[j] - baselines.mean - bias_V[item[j]] for j in range(t))
                    expected.append(baselines.mean + bias_V[item[t]] + past / (t + 10))
    assert len(found) > 100
    assert found == pytest.approx(expected, abs=1e-9)
