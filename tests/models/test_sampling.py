"""Draws from the catalogue softmax: their frequencies, what is never drawn, and that only π and the key matter."""

from __future__ import annotations

import pytest
import torch
from tests.models.test_ranking import jagged, seen_items
from tests.models.test_softmax import P, V, full, policy, problem, small_tiles
from tests.spawning import Ranks
from torch import Tensor

from retilt import ranks
from retilt.models.sampling import choose
from retilt.models.softmax import CatalogueSoftmax, Rows

KEY = torch.arange(P, dtype=torch.int32) * 7919 - 100_000


def probabilities(hidden: Tensor, rows: Tensor, bias: Tensor, seen: list[list[int]]) -> Tensor:
    """π without the seen items, (P, V), float64."""
    log_prob = full(hidden.double(), rows.double(), bias.double())
    for position, some in enumerate(seen):
        log_prob[position, some] = -torch.inf
    return log_prob.softmax(1)


@pytest.mark.parametrize(("dtype", "tilted"), [(torch.float32, True), (torch.float64, False)])
@pytest.mark.parametrize(("tile_rows", "tile_positions"), [(2048, 256), (100, 10), (1, 37)])
def test_frequencies_are_the_probabilities(
    dtype: torch.dtype, tile_rows: int, tile_positions: int, tilted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pearson's χ² of each position, its items in cells of at least 20 expected draws, against its mean and spread."""
    small_tiles(monkeypatch, tile_rows, tile_positions)
    draws = 4000
    hidden, rows, item, bias, _ = problem(tilted)
    seen = seen_items(item)
    found = policy(hidden.to(dtype), rows.to(dtype), bias).sample(draws, KEY, *jagged(seen))
    assert found.shape == (P, draws)
    expected = draws * probabilities(hidden, rows, bias, seen)
    count = torch.stack([each.bincount(minlength=V) for each in found])
    assert not count[expected == 0].any()
    # Cells: items in the order of their probabilities, cut where the running sum passes a multiple of 20.
    order = expected.argsort(dim=1)
    cell = (expected.gather(1, order).cumsum(1) / 20).long()
    cells = int(cell.max()) + 1
    wanted = torch.zeros(P, cells, dtype=torch.float64).scatter_add_(1, cell, expected.gather(1, order))
    met = torch.zeros(P, cells, dtype=torch.float64).scatter_add_(1, cell, count.gather(1, order).double())
    used = wanted > 10
    chi = ((met - wanted) ** 2 / wanted).where(used, 0).sum(1)
    freedom = used.sum(1) - 1
    assert ((chi - freedom) < 4.5 * (2 * freedom).sqrt()).all()  # 37 positions: about 1 in 3,000 by chance
    assert abs((chi - freedom).sum()) < 4 * (2 * freedom.sum()).sqrt()


def test_draws_of_a_position_are_independent() -> None:
    """Two draws are equal as often as Σ π², over draws and positions."""
    hidden, rows, item, bias, _ = problem()
    seen = seen_items(item)
    found = policy(4 * hidden, rows, bias).sample(1000, KEY, *jagged(seen))
    equal = (found[:, ::2] == found[:, 1::2]).double().mean(1)
    expected = (probabilities(4 * hidden, rows, bias, seen) ** 2).sum(1)
    assert ((equal - expected).abs() < 4 * (expected * (1 - expected) / 500).sqrt()).all()


def test_a_draw_depends_on_key_and_number_alone() -> None:
    hidden, rows, item, bias, _ = problem()
    seen = seen_items(item)
    found = policy(hidden, rows, bias).sample(8, KEY, *jagged(seen))
    assert torch.equal(policy(hidden, rows, bias).sample(8, KEY, *jagged(seen)), found)
    assert torch.equal(policy(hidden, rows, bias).sample(3, KEY, *jagged(seen)), found[:, :3])
    some = [30, 4, 11]
    alone = policy(hidden[some], rows, bias).sample(8, KEY[some], *jagged([seen[i] for i in some]))
    assert torch.equal(alone, found[some])
    assert (policy(hidden, rows, bias).sample(8, KEY + 1, *jagged(seen)) != found).float().mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile_rows", [2048, 64])
def test_what_is_left_beside_much_more_likely_seen_items(
    dtype: torch.dtype, tile_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen, withdrawn and padding items that are e⁸⁰ times as likely as all others; two of these are left."""
    small_tiles(monkeypatch, tile_rows, 16)
    hidden, rows, _, bias, _ = problem()
    bias = bias.masked_fill(bias > -torch.inf, 40.0)
    bias[[20, 400]] = -40.0
    seen = [[j for j in range(1, V) if j not in (7, 20, 400, 500)]] * P
    found = policy((0 * hidden).to(dtype), rows.to(dtype), bias).sample(100, KEY, *jagged(seen))
    assert found.unique().tolist() == [20, 400]
    assert abs((found == 20).double().mean() - 0.5) < 0.04  # 5 σ of 3,700 draws


def test_where_everything_is_seen_item_0_is_drawn() -> None:
    hidden, rows, _, bias, _ = problem()
    seen: list[list[int]] = [list(range(1, V)) if n % 2 else [] for n in range(P)]
    found = policy(hidden, rows, bias).sample(5, KEY, *jagged(seen))
    assert (found == 0).all(1).tolist() == [n % 2 == 1 for n in range(P)]
    assert (found == 0).any(1).tolist() == [n % 2 == 1 for n in range(P)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_unseen_has_the_rest_of_the_probability(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 100, 10)
    hidden, rows, item, bias, _ = problem(tilted=True)
    seen = seen_items(item)
    p_PV = full(hidden.double(), rows.double(), bias.double()).exp()
    expected = [1 - float(p_V[some].sum()) for p_V, some in zip(p_PV, seen, strict=True)]
    assert min(expected) < 0.99
    found = policy(hidden.to(dtype), rows.to(dtype), bias).unseen(*jagged(seen))
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)


def test_no_position_gives_no_draw() -> None:
    hidden, rows, _, bias, _ = problem()
    none = torch.empty(0, dtype=torch.int64)
    assert policy(hidden[:0], rows, bias).sample(4, KEY[:0], none, none).shape == (0, 4)


def test_shares_at_the_borders_choose_what_has_mass() -> None:
    """Masses 0, 1/4, 0, 3/4, 0: no share, not even 0 or 1, falls on those that are 0."""
    share = torch.tensor([[0.0, 0.125, 0.2499, 0.2501, 0.625, 1.0]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        masses = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]], dtype=dtype).log2()
        chosen, left = choose(masses, share)
        assert chosen.tolist() == [[1, 1, 1, 3, 3, 3]]
        torch.testing.assert_close(left, torch.tensor([[0.0, 0.5, 0.9996, 0.4 / 3000, 0.5, 1.0]], dtype=torch.float64))


def on_a_rank(shares: list[list[int]], sharded: bool) -> tuple[list[list[int]], list[float]]:
    hidden, rows, item, bias, _ = problem(tilted=True)
    block = -(-V // ranks.world()) if sharded else V
    first = ranks.rank() * block if sharded else 0
    mine, held = shares[ranks.rank()], slice(first, first + block)
    found = CatalogueSoftmax(hidden[mine], rows[held], Rows(first, first + len(rows[held]), bias[held], sharded))
    seen = jagged([seen_items(item)[i] for i in mine])
    return found.sample(500, KEY[mine], *seen).tolist(), found.unseen(*seen).tolist()


@pytest.mark.parametrize(("cut", "sharded"), [(20, True), (0, True), (20, False)])
def test_two_ranks_draw_what_one_draws(two_ranks: Ranks, cut: int, sharded: bool) -> None:
    """All of 18,500 draws: float64 puts about one in 10⁹ on another side of a border."""
    hidden, rows, item, bias, _ = problem(tilted=True)
    found = two_ranks(on_a_rank, [list(range(cut)), list(range(cut, P))], sharded)
    seen = jagged(seen_items(item))
    alone = policy(hidden, rows, bias).sample(500, KEY, *seen)
    assert [each for part, _ in found for each in part] == alone.tolist()
    unseen = policy(hidden, rows, bias).unseen(*seen).tolist()
    assert [each for _, part in found for each in part] == pytest.approx(unseen, rel=1e-6)
