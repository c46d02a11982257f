"""The policy's modes: float64 and no dropout in evaluation, ranks that do not depend on the batch around a user."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from retilt.models.catalog import ReplicatedTable, ShardedTable
from retilt.models.hstu import HSTU
from retilt.models.policy import CataloguePolicy, Network
from retilt.types import Batch

SETTINGS = HSTU(max_length=9, width=6, blocks=1, heads=1, head_width=6)
ITEMS = 40


def policy(placement: str = "replicated") -> CataloguePolicy:
    torch.manual_seed(0)
    if placement == "replicated":
        table: ReplicatedTable | ShardedTable = ReplicatedTable(ITEMS, 6, 1, "adam", 1e-3)
    else:
        table = ShardedTable(ITEMS, 6, 1, 0.05, torch.device("cpu"))
    network = Network(SETTINGS.build(0.5), table if isinstance(table, ReplicatedTable) else None)
    return CataloguePolicy(SETTINGS, network, table, torch.ones(ITEMS + 1, dtype=torch.bool))


def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    length = torch.tensor([10, 4, 7])
    valid = torch.arange(10) < length[:, None]
    supervised = valid.clone()
    supervised[:, 0] = False
    item = torch.randint(1, ITEMS + 1, (3, 10), generator=generator) * valid
    time = torch.arange(10).expand(3, 10) * 10**9
    empty = torch.zeros(int(supervised.sum()), dtype=torch.int64)
    return Batch(item, item.float(), time, supervised, length, torch.arange(3), empty[:0], empty, empty.bool())


def user(whole: Batch, row: int) -> Batch:
    """One user alone, without the padding of the others."""
    length = int(whole.length_B[row])
    part = (slice(row, row + 1), slice(0, length))
    targets = torch.zeros(length - 1, dtype=torch.int64)
    return Batch(
        whole.item_BT[part], whole.reward_BT[part], whole.time_BT[part], whole.supervised_BT[part],
        whole.length_B[row : row + 1], whole.example_B[row : row + 1], targets[:0], targets, targets.bool(),
    )  # fmt: skip


def ranks(found: CataloguePolicy, each: Batch) -> list[int]:
    assert each.seen_item is not None
    assert each.seen_length_P is not None
    places: list[int] = found.exact(each).ranks(each.target_item_P, each.seen_item, each.seen_length_P).tolist()
    return places


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_ranks_do_not_depend_on_the_batch_around_a_user(placement: str) -> None:
    found, whole = policy(placement).eval(), batch()
    alone = [ranks(found, user(whole, row)) for row in range(3)]
    assert ranks(found, whole) == [place for places in alone for place in places]
    assert found(whole).hidden_PD.dtype == torch.float64


def test_evaluation_sees_the_parameters_of_the_moment() -> None:
    found, whole = policy(), batch()
    before = found.eval()(whole).hidden_PD
    with torch.no_grad():
        found.network.backbone.get_parameter("position").add_(1)
    assert not torch.equal(found.eval()(whole).hidden_PD, before)
    assert found.train(0)(whole).hidden_PD.dtype == torch.float32


def test_probabilities_of_the_whole_catalogue_add_up_to_one() -> None:
    found, whole = policy().eval(), user(batch(), 1)
    total = torch.zeros(3, dtype=torch.float64)
    for item in range(1, ITEMS + 1):
        total += found(whole).log_prob(torch.full((3,), item)).exp()
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))


def test_the_item_that_is_predicted_does_not_matter_to_its_prediction() -> None:
    found, whole = policy().eval(), batch()
    item = whole.item_BT.clone()
    item[0, 9] = item[0, 9] % ITEMS + 1
    other = found(replace(whole, item_BT=item))
    assert torch.equal(other.hidden_PD, found(whole).hidden_PD)
