"""Tilted policies against the same worked out in full, for both placements and on two workers."""

from __future__ import annotations

import pytest
import torch
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches, trained_positions
from retilt.evaluation import positions
from retilt.evaluation import tilts as subject
from retilt.evaluation.ranking import Targets, tally
from retilt.evaluation.tilts import ItemTilt, item_means, reward_tilt_ranks, reward_tilt_tallies
from retilt.models.hstu import HSTU
from retilt.models.policy import CataloguePolicy
from retilt.training.assemble import Blueprint, build
from retilt.types import Batch

TEMPERATURES = (0.1, 0.7, 1e9)


class Waves:
    """A reward that depends on the item and on the time of the request."""

    def score(self, batch: Batch, item_PK: torch.Tensor) -> torch.Tensor:
        time_P = batch.time_BT[batch.supervised_BT] / 10**6
        return 3 + 2 * torch.sin(time_P[:, None] + 1.7 * item_PK).float()


def policy(dataset: Dataset, placement: str = "replicated") -> CataloguePolicy:
    ranks.single()
    blueprint = Blueprint(HSTU(**MODEL), dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, 3)  # type: ignore[arg-type]
    return build(blueprint, dataset.active(), torch.device("cpu")).eval()


def batches(dataset: Dataset) -> list[Batch]:
    return list(evaluation_batches(dataset, "test", 20, "all", 12, ranks.rank(), ranks.world()))


def logits(found: CataloguePolicy, batch: Batch, dataset: Dataset) -> torch.Tensor:
    """log π of every item, (P, V + 1), −∞ for what cannot be recommended: inactive or seen."""
    every_PV = torch.arange(dataset.items + 1).expand(len(batch.target_item_P), -1)
    found_PV = found.exact(batch).log_prob(every_PV).masked_fill(~dataset.active(), -torch.inf)
    seen_item, seen_length_P = positions.seen(batch)
    found_PV[torch.arange(len(found_PV)).repeat_interleave(seen_length_P), seen_item] = -torch.inf
    return found_PV


def ranks_of(logit_PV: torch.Tensor, raw_P: torch.Tensor, target_P: torch.Tensor) -> list[int]:
    """1 and how many of the others are at least as good as the target, whose own score is ``raw_P``."""
    others_PV = logit_PV.scatter(1, target_P[:, None], -torch.inf)
    found: list[int] = (1 + (others_PV >= raw_P[:, None]).sum(1)).tolist()
    return found


def reward_tilted(data: str, placement: str) -> list[list[int]]:
    """Ranks of this rank's targets, by temperature, by user and place."""
    dataset = Dataset.open(data)
    found = policy(dataset, placement)
    answer: list[list[int]] = [[] for _ in TEMPERATURES]
    for batch in batches(dataset):
        rank_LP = reward_tilt_ranks(found, Waves(), batch, TEMPERATURES, dataset.active())
        for each, rank_P in zip(answer, rank_LP.tolist(), strict=True):
            each += [user * 1000 + rank for user, rank in zip(batch.target_example_P.tolist(), rank_P, strict=True)]
    return answer


def test_reward_tilts_rank_as_the_whole_matrix_does(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles of 16 of the 50 items, of which one is withdrawn."""
    monkeypatch.setattr(subject, "TILE_ITEMS", 16)
    dataset = Dataset.open(data)
    found = policy(dataset)
    for batch in batches(dataset):
        target_P = batch.target_item_P
        log_PV, every_PV = logits(found, batch, dataset), torch.arange(51).expand(len(target_P), -1)
        reward_PV = Waves().score(batch, every_PV).double()
        raw_P, reward_P = found.exact(batch).log_prob(target_P), reward_PV.gather(1, target_P[:, None])[:, 0]
        rank_LP = reward_tilt_ranks(found, Waves(), batch, TEMPERATURES, dataset.active())
        for temperature, rank_P in zip(TEMPERATURES, rank_LP.tolist(), strict=True):
            assert rank_P == ranks_of(log_PV + reward_PV / temperature, raw_P + reward_P / temperature, target_P)
        untilted_P = found.exact(batch).ranks(target_P, *positions.seen(batch))
        assert rank_LP[-1].tolist() == untilted_P.tolist()
        assert rank_LP[0].tolist() != untilted_P.tolist()


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_reward_tilts_do_not_depend_on_the_workers(data: str, two_ranks: Ranks, placement: str) -> None:
    one = reward_tilted(data, "replicated")
    first, second = two_ranks(reward_tilted, data, placement)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(each) for each in one]


def test_reward_tilts_are_tallied_for_all_temperatures_in_one_pass(data: str) -> None:
    dataset = Dataset.open(data)
    found, counts = policy(dataset), dataset.train_counts("refit")
    given = {"train_counts": counts, "min_reward": 4.0, "replicates": 10, "seed": 0}
    targets = {each: Targets(**given) for each in TEMPERATURES}  # type: ignore[arg-type]
    tilted = reward_tilt_tallies(found, Waves(), batches(dataset), targets, dataset.active())
    untilted = tally(found, batches(dataset), **given)  # type: ignore[arg-type]
    assert torch.equal(tilted[1e9].sums, untilted.sums)
    assert not torch.equal(tilted[0.1].sums, untilted.sums)


def test_an_item_tilt_multiplies_the_probabilities(data: str) -> None:
    dataset = Dataset.open(data)
    found, mean_V = policy(dataset), torch.linspace(1, 5, dataset.items + 1, dtype=torch.float64)
    tilted, bias_V = ItemTilt(found, mean_V, 0.8), mean_V / 0.8
    batch = batches(dataset)[0]
    target_P = batch.target_item_P
    every_PV = torch.arange(dataset.items + 1).expand(len(target_P), -1)
    log_PV = found.exact(batch).log_prob(every_PV).masked_fill(~dataset.active(), -torch.inf)
    expected_PV = (log_PV + bias_V).log_softmax(1)
    active = dataset.active()
    torch.testing.assert_close(
        tilted.exact(batch).log_prob(every_PV)[:, active], expected_PV[:, active], rtol=1e-6, atol=1e-6
    )
    raw_P = found.exact(batch).log_prob(target_P) + bias_V[target_P]
    expected = ranks_of(logits(found, batch, dataset) + bias_V, raw_P, target_P)
    rank_P = tilted.exact(batch).ranks(target_P, *positions.seen(batch)).tolist()
    there_P = active[target_P].tolist()
    assert [rank for rank, there in zip(rank_P, there_P, strict=True) if there] == [
        rank for rank, there in zip(expected, there_P, strict=True) if there
    ]


def means(data: str, strength: float) -> list[float]:
    found: list[float] = item_means(Dataset.open(data), "select", 5, strength).tolist()
    return found


def test_item_means_are_shrunk_towards_the_mean(data: str, two_ranks: Ranks) -> None:
    rewards: dict[int, list[float]] = {item: [] for item in range(51)}
    for each in trained_positions(Dataset.open(data), "select", 5, 0, 1):
        for item, reward in zip(each.item_P.tolist(), each.reward_P.tolist(), strict=True):
            rewards[item].append(reward)
    every = [reward for each in rewards.values() for reward in each]
    mean = sum(every) / len(every)
    expected = [(sum(each) + 10 * mean) / (len(each) + 10) for each in rewards.values()]
    assert means(data, 10.0) == pytest.approx(expected, rel=1e-12)
    assert means(data, 0.0)[0] == pytest.approx(mean, rel=1e-12)  # padding has no event
    for found in two_ranks(means, data, 10.0):
        assert found == pytest.approx(expected, rel=1e-12)
