"""Both placements of the item table take the same steps, on one rank and on two, and start from the same values."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from tests.spawning import Ranks

from retilt import ranks
from retilt.models.catalog import (
    ReplicatedTable,
    ShardedTable,
    fill_initial_rows,
    plan_table,
    planned_rows,
    stored_width,
)
from retilt.models.hstu import HSTU
from retilt.models.optimizer import allocated_adam
from retilt.models.policy import CataloguePolicy, Network
from retilt.models.sampled import Sampler
from retilt.training import parallel
from retilt.training.approximation import sampling_gap
from retilt.types import Batch, InputError

ITEMS, WIDTH, STEPS = 101, 6, 5
SETTINGS = HSTU(max_length=8, width=WIDTH, blocks=1, heads=2, head_width=3)


def batch(step: int, share: slice) -> Batch:
    """Four users of up to nine events; every user's share is cut out, so that ranks see the same users."""
    generator = torch.Generator().manual_seed(step)
    length = torch.tensor([9, 5, 2, 7])
    valid = torch.arange(9) < length[:, None]
    item = torch.randint(1, ITEMS + 1, (4, 9), generator=generator) * valid
    time = torch.randint(0, 10**12, (4, 9), generator=generator).sort(1).values
    supervised = valid.clone()
    supervised[:, 0] = False
    return Batch(
        item[share], torch.rand(4, 9)[share], time[share], supervised[share], length[share], torch.arange(4)[share]
    )


Way = tuple[Literal["uniform", "popularity", "in_batch"], Literal["shared", "per_position"]]


def steps(placement: str, shares: list[list[int]], sampled: Way | None = None) -> dict[str, Any]:
    """Losses of a few steps and the rows this rank's softmax covers."""
    ranks.single()
    table: Any
    if placement == "row_wise":
        table = ShardedTable(ITEMS, WIDTH, 1, 0.05, torch.device("cpu"))
    else:
        table = ReplicatedTable(ITEMS, WIDTH, 1, "row_wise_adagrad" if placement == "replicated" else "adam", 0.05)
    torch.manual_seed(0)
    network = Network(SETTINGS.build(0.0), None if table.sharded else table)
    dense = allocated_adam(list(network.backbone.parameters()), 1e-2)
    active = torch.ones(ITEMS + 1, dtype=torch.bool)
    active[17] = False
    sampler = None if sampled is None else Sampler.of(*sampled, 24, True, active, torch.arange(1, ITEMS + 2))
    policy = CataloguePolicy(SETTINGS, network, table, active, wrap=parallel.wrapper(), sampler=sampler)
    first, last = shares[ranks.rank()]
    losses = []
    for step in range(STEPS):
        mine = batch(step, slice(first, last))
        total = -policy.train(step)(mine).log_prob(mine.target_item_P).sum()
        count = ranks.sum_(torch.tensor(float(mine.supervised_BT.sum())))
        dense.zero_grad()
        table.clear()
        (total * ranks.world() / count).backward()
        dense.step()
        table.step()
        losses.append(float(ranks.sum_(total.detach().clone()) / count))
    gap = None if sampled is None else sampling_gap(policy, mine)
    state = {name: value.tolist() for name, value in table.state().items()}
    return {"gap": gap, "losses": losses, "first": table.first, "last": table.last, **state}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return steps("replicated", [[0, 4]])


def test_sharded_on_one_rank_equals_replicated(alone: dict[str, Any]) -> None:
    found = steps("row_wise", [[0, 4]])
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    torch.testing.assert_close(torch.tensor(found["weight"]), torch.tensor(alone["weight"]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found["sum"]), torch.tensor(alone["sum"]), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
@pytest.mark.parametrize("shares", [[[0, 2], [2, 4]], [[0, 4], [4, 4]]], ids=["even", "one share is empty"])
def test_two_ranks_equal_one(two_ranks: Ranks, alone: dict[str, Any], placement: str, shares: list[list[int]]) -> None:
    found = two_ranks(steps, placement, shares)
    for part in found:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        rows = slice(part["first"], part["last"])
        torch.testing.assert_close(
            torch.tensor(part["weight"]), torch.tensor(alone["weight"])[rows], rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(torch.tensor(part["sum"]), torch.tensor(alone["sum"])[rows], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("way", [("popularity", "shared"), ("uniform", "per_position"), ("in_batch", "shared")])
def test_sampled_steps_are_equal_in_both_placements_and_on_two_ranks(two_ranks: Ranks, way: Way) -> None:
    alone = steps("replicated", [[0, 4]], way)
    assert 0 < alone["gap"] < 1
    one_shard = steps("row_wise", [[0, 4]], way)
    found = [one_shard, *two_ranks(steps, "row_wise", [[0, 1], [1, 4]], way)]
    found += two_ranks(steps, "replicated", [[0, 4], [4, 4]], way)
    for part in found:
        assert part["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert part["gap"] == pytest.approx(alone["gap"], rel=1e-4)
        rows = slice(part["first"], part["last"])
        torch.testing.assert_close(
            torch.tensor(part["weight"]), torch.tensor(alone["weight"])[rows], rtol=1e-4, atol=1e-6
        )


def test_adam_on_two_ranks_equals_one(two_ranks: Ranks) -> None:
    wanted = steps("adam", [[0, 4]])
    for part in two_ranks(steps, "adam", [[0, 1], [1, 4]]):
        assert part["losses"] == pytest.approx(wanted["losses"], rel=1e-5)


def test_padding_and_withdrawn_items_never_move(alone: dict[str, Any]) -> None:
    """Row 17 is inactive; it may still be in a history, so its row moves only through the lookup. Row 0 never does."""
    assert not any(alone["weight"][0])
    assert alone["sum"][0] == 0


def initial_rows(first: int, last: int, seed: int) -> torch.Tensor:
    rows = torch.full((last - first, stored_width(6)), torch.nan)
    fill_initial_rows(rows, first, 6, seed)
    return rows


def test_initial_rows_do_not_depend_on_how_they_are_cut() -> None:
    whole = initial_rows(0, 10_000, seed=3)
    cuts = [0, 17, 4096, 5000, 10_000]
    parts = [initial_rows(first, last, seed=3) for first, last in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (10_000, 8)
    assert not whole[:, 6:].any()
    assert not whole[0].any()
    assert whole[1:, :6].std().item() == pytest.approx(0.02 * 0.88, rel=0.02)  # cut at two SDs, which leaves .88 of one
    assert not torch.equal(whole, initial_rows(0, 10_000, seed=4))


@pytest.mark.parametrize(
    ("rows", "workers", "planned"), [(102, 2, [51, 51]), (1001, 3, [334, 334, 333]), (16, 4, [4, 4, 4, 4])]
)
def test_the_planner_deals_equal_blocks(rows: int, workers: int, planned: list[int]) -> None:
    """Of which a table's ``first`` and ``last`` are worked out; test_two_ranks_equal_one has two real ranks."""
    assert planned_rows(plan_table(rows, 8, workers, "cpu")) == planned


def test_the_planner_knows_the_rows_and_their_accumulators() -> None:
    """Half of a thousand rows of 8 numbers and one: 18,000 bytes, and what a lookup of one item takes."""
    assert plan_table(1000, 8, 2, "cpu", memory=18_000 + 1_000) is not None
    assert plan_table(1000, 8, 2, "cpu", memory=18_000 - 1) is None
    assert plan_table(1000, 8, 2, "cuda", memory=18_000 - 1) is None


def test_more_workers_than_rows_are_refused() -> None:
    with pytest.raises(InputError, match="workers = 5, but a table of 19 items cannot be sharded over more than 4"):
        plan_table(20, 8, 5, "cpu")
