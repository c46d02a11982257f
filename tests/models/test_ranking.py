"""Exact ranks and top-k against sorting in float64: with ties, near ties, seen items, few rows, and on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.test_softmax import D, P, V, policy, problem, small_tiles
from tests.spawning import Ranks
from torch import Tensor
from torch.nn.functional import normalize

from retilt import ranks
from retilt.models import ranking
from retilt.models.softmax import CatalogueSoftmax, Rows


def seen_items(item: Tensor) -> list[list[int]]:
    """Some items per position, never the target, one of them withdrawn."""
    generator = torch.Generator().manual_seed(5)
    drawn = [[7, *torch.randint(1, V, (n % 9,), generator=generator).unique().tolist()] for n in range(P)]
    return [sorted({j for j in some if j != target}) for some, target in zip(drawn, item.tolist(), strict=True)]


def jagged(seen: list[list[int]]) -> tuple[Tensor, Tensor]:
    flat = torch.tensor([j for some in seen for j in some], dtype=torch.int64)
    return flat, torch.tensor([len(some) for some in seen], dtype=torch.int64)


def crowded(tilted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in float32 of which many are equal, and many differ by less than float32's error in a product.

    ``tilted``, biases are one of a few numbers, up to 40 nats, or differ from it by less than float32's error.
    """
    hidden, rows, item, bias, _ = problem(tilted)
    generator = torch.Generator().manual_seed(8)
    rows[100:200] = rows[100]
    rows[200:400] = rows[200] + 1e-7 * torch.randn(200, D, generator=generator)
    item[:10] = torch.arange(100, 300, 20)
    if tilted:
        bias.round_()[20:60] += 35.3
        bias[200:400] += 1e-6 * torch.randn(200, generator=generator)
    return hidden, rows.float(), item, bias


def scores(hidden: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    return hidden.double() @ normalize(rows.double(), dim=1, eps=1e-6).T + bias


def brute_ranks(hidden: Tensor, rows: Tensor, item: Tensor, bias: Tensor, seen: list[list[int]]) -> list[int]:
    """Unseen active items that score as high or higher, and one."""
    found = []
    for score, target, skip in zip(scores(hidden, rows, bias).tolist(), item.tolist(), seen, strict=True):
        others = [score[j] for j in range(V) if bias[j] > -torch.inf and j not in skip and j != target]
        found.append(1 + sum(other >= score[target] - ranking.TIE for other in others))
    return found


def brute_top(hidden: Tensor, rows: Tensor, bias: Tensor, seen: list[list[int]], k: int) -> list[list[int]]:
    """By sorting; equals in the order of the items; filled up with 0."""
    found = []
    for score, skip in zip(scores(hidden, rows, bias).tolist(), seen, strict=True):
        allowed = [j for j in range(V) if bias[j] > -torch.inf and j not in skip]
        best = sorted(allowed, key=lambda j: (-score[j], j))[:k]
        found.append(best + [0] * (k - len(best)))
    return found


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize(("tile_rows", "tile_positions"), [(2048, 256), (64, 10), (7, 37)])
def test_ranks_with_ties_and_near_ties(
    tile_rows: int, tile_positions: int, tilted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, tile_rows, tile_positions)
    hidden, rows, item, bias = crowded(tilted)
    seen = seen_items(item)
    found = policy(hidden, rows, bias).ranks(item, *jagged(seen))
    assert found.tolist() == brute_ranks(hidden, rows, item, bias, seen)


@pytest.mark.parametrize(("tile_rows", "tile_positions"), [(2048, 256), (64, 10), (7, 37)])
@pytest.mark.parametrize(
    ("k", "tilted"), [(1, False), (10, False), (150, False), (600, False), (10, True), (600, True)]
)
def test_top_k_with_ties_and_near_ties(
    k: int, tile_rows: int, tile_positions: int, tilted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, tile_rows, tile_positions)
    hidden, rows, item, bias = crowded(tilted)
    seen = seen_items(item)
    # Equal rows give float64 scores that may differ in the last bit by how a product was summed up.
    logit, found = policy(hidden, rows, bias).top_k(k, *jagged(seen))
    wanted = brute_top(hidden, rows, bias, seen, k)
    score = scores(hidden, rows, bias)
    torch.testing.assert_close(logit, score.gather(1, torch.tensor(wanted)), rtol=0, atol=1e-12)
    torch.testing.assert_close(logit, score.gather(1, found), rtol=0, atol=1e-12)
    for mine, skip in zip(found.tolist(), seen, strict=True):
        kept = [item for item in mine if item]
        assert len(set(kept)) == len(kept)
        assert not set(kept) & {*skip, 7, 500}


def test_biases_much_larger_than_logits() -> None:
    """In float32 the sums of biases of 1,000 nats and logits of .1 are multiples of 6e-5: many come out equal."""
    hidden, rows, item, bias, _ = problem()
    hidden, rows, bias, seen = hidden / 100, rows.float(), bias + 1000, seen_items(item)
    found = policy(hidden, rows, bias)
    assert found.ranks(item, *jagged(seen)).tolist() == brute_ranks(hidden, rows, item, bias, seen)
    assert found.top_k(50, *jagged(seen))[1].tolist() == brute_top(hidden, rows, bias, seen, 50)


def test_a_withdrawn_item_is_ranked_as_if_it_were_not() -> None:
    hidden, rows, item, bias = crowded(tilted=True)
    seen: list[list[int]] = [[]] * P
    target = torch.full_like(item, 7)
    found = policy(hidden, rows, bias).ranks(target, *jagged(seen))
    bias[7] = 0
    assert found.tolist() == brute_ranks(hidden, rows, target, bias, seen)


def test_best_orders_equals_by_item_and_fills_up() -> None:
    logit = torch.tensor([[1.0, 3.0, 3.0, -torch.inf]])
    item = torch.tensor([[4, 9, 2, 1]])
    assert ranking.best(logit, item, 2)[1].tolist() == [[2, 9]]
    assert ranking.best(logit, item, 6)[1].tolist() == [[2, 9, 4, 0, 0, 0]]


def on_a_rank(shares: list[list[int]], tilted: bool) -> dict[str, Any]:
    hidden, rows, item, bias = crowded(tilted)
    block = -(-V // ranks.world())
    first = ranks.rank() * block
    mine, held = shares[ranks.rank()], slice(first, first + block)
    cover = Rows(first, first + len(rows[held]), bias[held], True)
    found = CatalogueSoftmax(hidden[mine], rows[held], cover)
    seen = jagged([seen_items(item)[i] for i in mine])
    logit, items = found.top_k(12, *seen)
    return {"ranks": found.ranks(item[mine], *seen).tolist(), "logit": logit.tolist(), "items": items.tolist()}


@pytest.mark.parametrize(("cut", "tilted"), [(20, False), (0, True)])
def test_rows_on_two_ranks_equal_one(two_ranks: Ranks, cut: int, tilted: bool) -> None:
    hidden, rows, item, bias = crowded(tilted)
    seen = jagged(seen_items(item))
    found = two_ranks(on_a_rank, [list(range(cut)), list(range(cut, P))], tilted)
    alone = policy(hidden, rows, bias)
    assert [each for part in found for each in part["ranks"]] == alone.ranks(item, *seen).tolist()
    logit, items = alone.top_k(12, *seen)
    assert [each for part in found for each in part["items"]] == items.tolist()
    assert [each for part in found for each in part["logit"]] == logit.tolist()
