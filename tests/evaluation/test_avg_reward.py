"""Avg Reward: which positions, what is drawn there, and that neither depends on the workers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.evaluation import avg_reward, positions
from retilt.evaluation.avg_reward import AvgReward
from retilt.evaluation.statistics import Tally
from retilt.models.hstu import HSTU
from retilt.models.policy import CataloguePolicy
from retilt.training.assemble import Blueprint, build
from retilt.types import Batch


class ItemIsReward:
    """Gives every item its own number, and notes what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[Batch, torch.Tensor]] = []

    def score(self, batch: Batch, item_PK: torch.Tensor) -> torch.Tensor:
        self.asked.append((batch, item_PK))
        return item_PK.float()


def policy(dataset: Dataset, placement: str = "replicated") -> CataloguePolicy:
    ranks.single()
    blueprint = Blueprint(HSTU(**MODEL), dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, 3)  # type: ignore[arg-type]
    return build(blueprint, dataset.active(), torch.device("cpu")).eval()


def batches(dataset: Dataset) -> list[Batch]:
    return list(evaluation_batches(dataset, "test", 20, "all", 12, ranks.rank(), ranks.world()))


def tally(
    found: CataloguePolicy,
    some: list[Batch],
    judge: ItemIsReward,
    reference: CataloguePolicy | None,
    *,
    last: int,
    replicates: int = 0,
    seed: int = 0,
) -> Tally:
    """Of a policy, as of its distributions at all positions."""
    each, other = (
        AvgReward({"judge": model}, reference, last=last, replicates=replicates, seed=seed)
        for model in (judge, ItemIsReward())
    )
    for batch in some:
        each.add_policy(batch, found)
        other.add(batch, found.exact(batch))
    torch.testing.assert_close(each.tally.sums, other.tally.sums, rtol=1e-9, atol=1e-9)
    return each.tally


def measured(data: str, placement: str, last: int) -> Tally:
    dataset = Dataset.open(data)
    found = policy(dataset, placement)
    return tally(found, batches(dataset), ItemIsReward(), found, last=last, replicates=20).sum_over_ranks()


def test_as_many_positions_as_asked_for_are_chosen_alike_for_every_window(data: str) -> None:
    dataset = Dataset.open(data)
    events = dataset.events - int(dataset.statistics("refit")["events"])
    assert positions.threshold(dataset, "test", events, 0) == positions.EVERY
    last = positions.threshold(dataset, "test", 25, 0)
    chosen = {}
    for window in (20, 5):
        found = evaluation_batches(dataset, "test", window, "all", 12, 0, 1)
        key_P = torch.cat([positions.keys(batch, 0) for batch in found])
        chosen[window] = set(key_P[key_P <= last].tolist())
    assert len(chosen[20]) == 25
    assert chosen[20] == chosen[5]


def threshold(data: str, most: int) -> int:
    return positions.threshold(Dataset.open(data), "validation", most, 0)


def test_two_workers_choose_the_same_positions(data: str, two_ranks: Ranks) -> None:
    assert two_ranks(threshold, data, 25) == [threshold(data, 25)] * 2


def test_a_batch_is_cut_to_positions_with_what_belongs_to_them(data: str) -> None:
    whole = batches(Dataset.open(data))[0]
    assert whole.seen_item is not None
    assert whole.seen_length_P is not None
    kept_P = torch.arange(len(whole.target_item_P)) % 3 == 1
    some = positions.chosen(whole, kept_P)
    assert torch.equal(some.target_item_P, whole.target_item_P[kept_P])
    assert torch.equal(some.target_example_P, whole.target_example_P[kept_P])
    assert some.supervised_BT.any(1).all()
    seen = whole.seen_item.split(whole.seen_length_P.tolist())
    expected = torch.cat([each for each, kept in zip(seen, kept_P.tolist(), strict=True) if kept])
    assert torch.equal(positions.seen(some)[0], expected)
    nothing = positions.chosen(whole, torch.zeros_like(kept_P))
    assert len(nothing.target_item_P) == len(nothing.length_B) == len(positions.seen(nothing)[0]) == 0


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_scores_do_not_depend_on_the_workers(data: str, two_ranks: Ranks, placement: str) -> None:
    last = threshold(data, 40)
    one = measured(data, "replicated", last)
    assert one.count("n") > 20
    for found in two_ranks(measured, data, placement, last):
        torch.testing.assert_close(found.sums, one.sums, rtol=1e-9, atol=1e-9)


def test_what_is_drawn_follows_the_policy_and_leaves_the_history_out(data: str) -> None:
    """Means of 10 draws at every position, against the distribution worked out in full; KL to itself is 0."""
    dataset, judge = Dataset.open(data), ItemIsReward()
    found = policy(dataset)
    scores = tally(found, batches(dataset), judge, found, last=positions.EVERY, replicates=20)
    expected, variance = [], []
    for batch, item_PK in judge.asked:
        distribution = found.exact(batch)
        every_PV = torch.arange(1, dataset.items + 1).expand(len(item_PK), -1)
        p_PV = distribution.log_prob(every_PV).exp()
        seen_item, seen_length_P = positions.seen(batch)
        position = torch.arange(len(item_PK)).repeat_interleave(seen_length_P)
        p_PV[position, seen_item - 1] = 0
        assert bool((p_PV.gather(1, item_PK - 1) > 0).all())
        p_PV /= p_PV.sum(1, keepdim=True)
        mean_P = (p_PV * every_PV).sum(1)
        expected += mean_P.tolist()
        variance += ((p_PV * every_PV**2).sum(1) - mean_P**2).tolist()
    assert scores.count("n") == len(expected)
    error = np.sqrt(sum(variance) / avg_reward.DRAWS) / len(expected)
    assert scores.means()["judge"] == pytest.approx(np.mean(expected), abs=4 * error)
    assert scores.means()["kl"] == pytest.approx(0, abs=1e-12)


def test_policies_are_compared_at_the_same_positions_by_the_same_numbers(data: str) -> None:
    dataset = Dataset.open(data)
    first, again = (ItemIsReward() for _ in range(2))
    for judge in (first, again):
        tally(policy(dataset), batches(dataset), judge, None, last=threshold(data, 40), seed=1)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first.asked, again.asked, strict=True))


def test_nothing_excluded(data: str) -> None:
    dataset = Dataset.open(data)
    free = [replace(batch, seen_item=None, seen_length_P=None) for batch in batches(dataset)]
    found = tally(policy(dataset), free, ItemIsReward(), None, last=1 << 60)
    assert found.names == ("judge", "entropy")
    assert found.count("n") > 0
