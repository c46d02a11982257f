"""Who gains: groups of targets, what lists hold, pairs of a user's items; by hand and on any number of parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from retilt.data.collate import Rows, Targets, evaluation_batch
from retilt.data.dataset import Dataset
from retilt.evaluation import groups, lists
from retilt.evaluation.groups import Division, divide
from retilt.evaluation.lists import LIFT, Lists
from retilt.evaluation.pairs import ACCURACY, Pairs
from retilt.types import Batch


def sequences(length: list[int], item: list[int], reward: list[float]) -> Rows:
    start = np.cumsum([0, *length[:-1]])
    time = np.concatenate([np.arange(n) for n in length]) * 10**6
    return Rows(
        np.array(item, dtype=np.int32), np.array(reward, dtype=np.float32), time, start, np.array(length),
        np.arange(len(length)),
    )  # fmt: skip


def held_out(rows: Rows, k: int = 2, window: int = 2) -> Batch:
    targets = Targets.of(rows.length, k, "test", window)
    return evaluation_batch(rows, targets, np.arange(len(rows.length)), "all")


class Known:
    """Recommends items 1, 2, … to everybody; its log-probabilities fall with the item."""

    def top_k(self, k: int, seen_item: torch.Tensor, seen_length_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        item_Pk = torch.arange(1, k + 1).expand(len(seen_length_P), k).clone()
        item_Pk[:, 3:] = 0  # a catalogue in which no more than three are left
        return torch.zeros(item_Pk.shape), item_Pk

    def log_prob(self, item: torch.Tensor) -> torch.Tensor:
        return -item.double()


def test_groups_divide_by_the_whole_history_and_by_training_counts() -> None:
    """Users of 4, 6 and 9 events hold out 2: 2, 4 and 7 events before, of which the window shows two at most."""
    rows = sequences([4, 6, 9], [1, 2, 3, 4, *[1] * 4, 3, 5, *[2] * 7, 6, 1], [3.0] * 19)
    counts = torch.tensor([0, 50, 50, 20, 20, 2, 0])
    division = Division((3, 5), (10, 30), counts)
    member = dict(zip(groups.NAMES, division.members(held_out(rows)).tolist(), strict=True))
    assert member["activity_low"] == [True, True, False, False, False, False]
    assert member["activity_middle"] == [False, False, True, True, False, False]
    assert member["activity_high"] == [False, False, False, False, True, True]
    assert member["popularity_low"] == [False, False, False, True, True, False]  # items 5 and 6
    assert member["popularity_middle"] == [True, True, True, False, False, False]
    assert member["popularity_high"] == [False, False, False, False, False, True]
    assert member["untied"] == [True] * 6
    assert member["tied"] == [False] * 6


def test_bounds_are_thirds_of_users_and_of_training_events(data: str) -> None:
    dataset = Dataset.open(data)
    counts = dataset.train_counts("refit")
    division = divide(dataset, "test", counts)
    low, high = division.popularity
    events = [int(counts[(counts > a) & (counts <= b)].sum()) for a, b in ((-1, low), (low, high), (high, 10**6))]
    assert events == pytest.approx([int(counts.sum()) / 3] * 3, abs=4 * int(counts.max()))
    assert division.activity[0] < division.activity[1]


def test_gini_and_coverage_by_hand() -> None:
    assert lists.gini(torch.tensor([1, 1, 1, 1])) == 0
    assert lists.gini(torch.tensor([1, 2, 3])) == pytest.approx((-2 * 1 + 2 * 3) / (3 * 6))
    assert lists.gini(torch.tensor([0, 0, 0, 8])) == pytest.approx(3 / 4)
    assert math.isnan(lists.gini(torch.tensor([0, 0])))
    assert lists.coverage(torch.tensor([1, 0, 7, 0])) == 0.5


def test_lists_are_counted_and_compared_with_the_history() -> None:
    rows = sequences([4, 4], [1, 2, 3, 4, 4, 4, 5, 1], [3.0] * 8)
    counts, active = torch.tensor([0, 8, 4, 3, 2, 0]), torch.tensor([False, True, True, True, True, False])
    found = Lists(counts, active, 50, 0)
    batch = held_out(rows)
    found.add(batch, Known())  # type: ignore[arg-type]
    assert found.counts_JV.sum(0).tolist() == [0, 4, 4, 4, 0, 0]
    assert lists.summary(found)["coverage@10"]["value"] == 3 / 4
    listed = (8 + 4 + 3) / 3
    # Histories within the window: (2), (2, 3); (4), (4, 5), where item 5 counts as one event.
    history = [4, (4 + 3) / 2, 2, (2 + 1) / 2]
    lift = lists.summary(found)[LIFT]
    assert lift["value"] == pytest.approx(np.mean([listed / each for each in history]))
    assert lists.versus(found, found)[LIFT]["value"] == 0


def recommended(users: int, spread: int, strength: float, seed: int = 0) -> Lists:
    """Users to whom items are recommended that are the likelier, the smaller they are."""
    source = np.random.default_rng(seed)
    counts, active = torch.ones(spread + 1, dtype=torch.int64), torch.arange(spread + 1) > 0
    found = Lists(counts, active, 50, 0)
    p = np.arange(1, spread + 1) ** -strength
    item = torch.from_numpy(source.choice(spread, (users, 10), p=p / p.sum())) + 1

    class Drawn:
        def top_k(self, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(item.shape), item

    rows = sequences([3] * users, [1] * 3 * users, [3.0] * 3 * users)
    found.add(held_out(rows, k=1), Drawn())  # type: ignore[arg-type]
    return found


def test_the_jackknife_covers_the_spread_over_users() -> None:
    """Of 60 samples of users about 95% of the intervals hold the mean Gini index: fewer than 51 with p < 1e-4."""
    every = [lists.summary(recommended(60, 30, 1.0, seed))["gini@10"] for seed in range(60)]
    mean = float(np.mean([each["value"] for each in every]))
    assert sum(each["low"] < mean < each["high"] for each in every) >= 51


def test_differences_of_lists_are_paired() -> None:
    narrow, wide = recommended(60, 30, 2.0), recommended(60, 30, 0.5)
    found = lists.versus(narrow, wide)
    assert found["gini@10"]["low"] > 0
    assert found["coverage@10"]["value"] < 0
    assert lists.versus(narrow, narrow)["gini@10"] == {"value": 0, "low": 0, "high": 0}


def test_pairs_of_a_user_by_hand() -> None:
    """Held out: a high and a low item in order, the same in disorder, and two high ones, which make no pair."""
    rows = sequences([4, 4, 4], [9, 9, 1, 2, 9, 9, 1, 2, 9, 9, 1, 2], [3, 3, 5, 1, 3, 3, 2, 4, 3, 3, 5, 5])
    found = Pairs(2.0, 4.0, 5, 50, 0)
    found.add(held_out(rows), Known())  # type: ignore[arg-type]
    assert found.tally.count("users") == found.tally.count("n") == 2
    assert found.tally.means()[ACCURACY] == 0.5

    class Indifferent(Known):
        def log_prob(self, item: torch.Tensor) -> torch.Tensor:
            return torch.full(item.shape, -torch.inf)

    even = Pairs(2.0, 4.0, 5, 50, 0)
    even.add(held_out(rows), Indifferent())  # type: ignore[arg-type]
    assert even.tally.means()[ACCURACY] == 0.5


def test_all_pairs_of_a_user_count_once_together() -> None:
    """Three high items and two low ones: items 1, 2 and 5 against 3 and 4, of which four of six pairs are in order."""
    rows = sequences([10], [9] * 5 + [1, 3, 2, 4, 5], [3.0] * 5 + [5, 1, 4, 2, 4])
    found = Pairs(2.0, 4.0, 5, 50, 0)
    found.add(held_out(rows, k=5, window=9), Known())  # type: ignore[arg-type]
    assert found.tally.count("n") == 1
    assert found.tally.means()[ACCURACY] == pytest.approx(4 / 6)
    nobody = Pairs(0.5, 4.0, 5, 50, 0)
    nobody.add(held_out(rows, k=5, window=9), Known())  # type: ignore[arg-type]
    assert nobody.tally.means()[ACCURACY] is None
