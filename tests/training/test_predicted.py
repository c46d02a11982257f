"""Data sets whose training rewards a reward model makes: which events, which values, alike on two workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.spawning import Ranks
from tests.training.test_loop import Listener, alone, planned

from retilt import ranks
from retilt.data.changes import groups
from retilt.data.dataset import Dataset
from retilt.training import predicted
from retilt.training.companions import load_policy, load_reward_model
from retilt.types import Batch, InputError

CPU = torch.device("cpu")
WINDOW = 20
"""N of small_dataset.MODEL; users of the data have up to 30 events."""


@pytest.fixture(scope="module")
def models(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs of a policy and of a reward model, both trained on everything before test."""
    place = tmp_path_factory.mktemp("models")
    alone(planned(data, place / "bc", epochs=1, protocol="refit"))
    paper = {"name": "reward_model", "variant": "paper"}
    alone(planned(data, place / "rm", epochs=1, protocol="refit", initial=str(place / "bc"), algorithm=paper))
    return {"policy": str(place / "bc" / "policy" / "last"), "reward_model": str(place / "rm" / "policy" / "last")}


def asked(data: str, output: Path, models: dict[str, str], **values: Any) -> dict[str, Any]:
    settings = {"protocol": "refit", "seed": 0, "table": "row_wise", "device": "cpu", "policy": None}
    return {**settings, "dataset": data, "output": str(output), "reward_model": models["reward_model"], **values}


def rewards(dataset: Dataset) -> np.ndarray[Any, Any]:
    return np.concatenate([group.rows.reward for group in groups(dataset, "refit")])


def whole(dataset: Dataset, reward: Callable[[Batch], torch.Tensor]) -> np.ndarray[Any, Any]:
    return np.concatenate(list(predicted.replacements(dataset, "refit", WINDOW, reward, CPU)))


def work(arguments: dict[str, Any]) -> None:
    ranks.single()
    predicted.work(arguments, Listener())


@pytest.mark.parametrize(("protocol", "window"), [("refit", 5), ("select", 100)])
def test_new_rewards_are_of_the_positions_that_are_trained_on(data: str, protocol: Any, window: int) -> None:
    """Each reward tells item and time: of a user's n events before the cut the last ``window``, never the first."""
    dataset = Dataset.open(data)

    def reward(batch: Batch) -> torch.Tensor:
        return batch.target_item_P + batch.time_BT[batch.supervised_BT] / 1e9

    found = predicted.replacements(dataset, protocol, window, reward, CPU)
    for group, new_E in zip(groups(dataset, protocol), found, strict=True):
        rows = group.rows
        for start, length in zip(rows.start, rows.length, strict=True):
            train = int(group.training_E[start : start + length].sum())
            new = np.full(length, np.nan)
            trained = slice(max(1, train - window), train)
            event = slice(start, start + length)
            new[trained] = (rows.item[event] + rows.time[event] / 1e9)[trained]
            np.testing.assert_allclose(new_E[event], new, rtol=1e-6)


def test_predicted_rewards_are_those_of_the_logged_items(data: str, models: dict[str, str], tmp_path: Path) -> None:
    work(asked(data, tmp_path / "new", models))
    original, new = Dataset.open(data), Dataset.open(str(tmp_path / "new"))
    model = load_reward_model(models["reward_model"], original, CPU, "replicated")
    expected_E = whole(original, lambda batch: model.score(batch, batch.target_item_P[:, None])[:, 0])
    known_E = ~np.isnan(expected_E)
    assert known_E.sum() > 400
    np.testing.assert_allclose(rewards(new)[known_E], expected_E[known_E], rtol=1e-5)
    np.testing.assert_array_equal(rewards(new)[~known_E], rewards(original)[~known_E])
    assert new.manifest["derived_from"]["change"]["by"].startswith("predicted by ")
    assert new.manifest["derived_from"]["origin"] == original.fingerprint


def test_an_advantage_is_the_reward_above_the_mean_of_four_draws(
    data: str, models: dict[str, str], tmp_path: Path
) -> None:
    """V̂ is without bias of V(s) = Σ_a π(a | s) r̂(s, a) over items not in the window; a quarter of its spread."""
    work(asked(data, tmp_path / "new", models, policy=models["policy"]))
    dataset = Dataset.open(data)
    model = load_reward_model(models["reward_model"], dataset, CPU, "replicated")
    policy = load_policy(models["policy"], dataset, CPU, "replicated").eval()

    def moments(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of r̂ under π without the history, (P,) each."""
        every_PV = torch.arange(1, dataset.items + 1).expand(len(batch.target_item_P), -1)
        log_PV = policy.exact(batch).log_prob(every_PV).masked_fill(~dataset.active()[1:], -torch.inf)
        seen_item, seen_length_P = batch.history()
        log_PV[torch.arange(len(log_PV)).repeat_interleave(seen_length_P), seen_item - 1] = -torch.inf
        policy_PV, reward_PV = log_PV.softmax(1), model.score(batch, every_PV).double()
        mean_P = (policy_PV * reward_PV).sum(1)
        return mean_P, (policy_PV * (reward_PV - mean_P[:, None]) ** 2).sum(1)

    expected_E = whole(dataset, lambda batch: batch.target_reward_P - moments(batch)[0])
    variance_E = whole(dataset, lambda batch: moments(batch)[1])
    known_E = ~np.isnan(expected_E)
    gap_E, variance_E = (rewards(Dataset.open(str(tmp_path / "new"))) - expected_E)[known_E], variance_E[known_E] / 4
    assert abs(gap_E.mean()) < 4 * (variance_E.mean() / len(gap_E)) ** 0.5
    assert (gap_E**2).mean() == pytest.approx(variance_E.mean(), rel=0.3)


@pytest.mark.parametrize("table", ["replicated", "row_wise"])
def test_two_workers_write_what_one_writes(
    data: str, models: dict[str, str], two_ranks: Ranks, tmp_path: Path, table: str
) -> None:
    one, two = (asked(data, tmp_path / name, models, policy=models["policy"], table=table) for name in ("one", "two"))
    work(one)
    two_ranks(work, two)
    found = [rewards(Dataset.open(each["output"])) for each in (one, two)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    two_ranks(work, two)  # found whole by both


def test_a_new_reward_that_is_not_finite_leaves_nothing(
    data: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted, "predicted", lambda model, batch: torch.full_like(batch.target_reward_P, torch.inf))
    with pytest.raises(InputError, match="a new reward is not a finite float32"):
        work(asked(data, tmp_path / "new", models))
    assert not (tmp_path / "new").exists()
