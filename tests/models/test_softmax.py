"""The tiled softmax against the full matrix of logits, in one process and with its rows on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.spawning import Ranks
from torch import Tensor

from retilt import ranks
from retilt.models import softmax
from retilt.models.softmax import CatalogueSoftmax, Rows

P, V, D = 37, 501, 6


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, rows, items, inactive rows and weights; row 0 is padding, rows 7 and 500 are withdrawn."""
    generator = torch.Generator().manual_seed(3)
    hidden, rows = torch.randn(P, D, generator=generator), torch.randn(V, D, generator=generator)
    inactive = torch.zeros(V, dtype=torch.bool)
    inactive[[0, 7, 500]] = True
    item = torch.randint(8, V - 1, (P,), generator=generator)
    return hidden, rows, item, inactive, torch.rand(P, generator=generator)


def full(hidden: Tensor, rows: Tensor, item: Tensor, inactive: Tensor) -> Tensor:
    logits = (hidden @ rows.T).masked_fill(inactive, -torch.inf)
    return logits.log_softmax(1).gather(1, item[:, None]).squeeze(1)


@pytest.mark.parametrize(("tile_rows", "tile_positions"), [(2048, 256), (100, 10), (1, 37)])
def test_equals_the_full_matrix(tile_rows: int, tile_positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "TILE_ROWS", tile_rows)
    monkeypatch.setattr(softmax, "TILE_POSITIONS", tile_positions)
    hidden, rows, item, inactive, weight = problem()
    hidden, rows = hidden.double().requires_grad_(), rows.double().requires_grad_()
    found = CatalogueSoftmax(hidden, Rows(rows, 0, inactive, False)).log_prob(item)
    expected = full(hidden, rows, item, inactive)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((weight * expected).sum(), [hidden, rows])
    for mine, theirs in zip(torch.autograd.grad((weight * found).sum(), [hidden, rows]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_float32_is_as_good_as_float32_can_be() -> None:
    hidden, rows, item, inactive, _ = problem()
    found = CatalogueSoftmax(20 * hidden, Rows(rows, 0, inactive, False)).log_prob(item)
    exact = full(20 * hidden.double(), rows.double(), item, inactive)
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=2e-6)


def test_no_position_gives_no_value_and_zero_gradients() -> None:
    hidden, rows, _, inactive, _ = problem()
    hidden, rows = hidden[:0].requires_grad_(), rows.requires_grad_()
    found = CatalogueSoftmax(hidden, Rows(rows, 0, inactive, False)).log_prob(torch.empty(0, dtype=torch.int64))
    found.sum().backward()
    assert found.shape == (0,)
    assert rows.grad is not None
    assert not rows.grad.any()


def brute_ranks(hidden: Tensor, rows: Tensor, item: Tensor, inactive: Tensor, seen: list[list[int]]) -> list[int]:
    """By sorting: unseen active items, best first, the target after its equals."""
    found = []
    for h, target, skip in zip(hidden.double(), item.tolist(), seen, strict=True):
        score = (rows.double() @ h).tolist()
        others = [score[j] for j in range(len(score)) if not inactive[j] and j not in skip and j != target]
        found.append(1 + sum(other >= score[target] for other in others))
    return found


def seen_items(item: Tensor) -> list[list[int]]:
    """Some items per position, never the target, one of them withdrawn."""
    generator = torch.Generator().manual_seed(5)
    drawn = [[7, *torch.randint(1, V, (n % 9,), generator=generator).unique().tolist()] for n in range(P)]
    return [sorted({j for j in some if j != target}) for some, target in zip(drawn, item.tolist(), strict=True)]


def test_ranks_by_brute_force_with_ties() -> None:
    hidden, rows, item, inactive, _ = problem()
    rows[item[0] + 1] = rows[item[0]]
    rows[item[1] - 1] = rows[item[1]]
    seen = seen_items(item)
    flat = torch.tensor([j for some in seen for j in some])
    found = CatalogueSoftmax(hidden.double(), Rows(rows.double(), 0, inactive, False)).ranks(
        item, flat, torch.tensor([len(some) for some in seen])
    )
    assert found.tolist() == brute_ranks(hidden, rows, item, inactive, seen)


def on_a_rank(shares: list[list[int]]) -> dict[str, Any]:
    """This rank's rows and positions; every returned tensor is a list so that it crosses the pipe by value."""
    hidden, rows, item, inactive, weight = problem()
    hidden, rows = hidden.double(), rows.double()
    block = -(-V // ranks.world())
    first = ranks.rank() * block
    mine = shares[ranks.rank()]
    own_hidden = hidden[mine].clone().requires_grad_()
    own_rows = rows[first : first + block].clone().requires_grad_()
    distribution = CatalogueSoftmax(own_hidden, Rows(own_rows, first, inactive[first : first + block], True))
    log_prob = distribution.log_prob(item[mine])
    (weight[mine].double() * log_prob).sum().backward()
    seen = [seen_items(item)[i] for i in mine]
    flat = torch.tensor([j for some in seen for j in some], dtype=torch.int64)
    places = distribution.ranks(item[mine], flat, torch.tensor([len(some) for some in seen], dtype=torch.int64))
    assert own_hidden.grad is not None
    assert own_rows.grad is not None
    return {
        "log_prob": log_prob.tolist(),
        "hidden": own_hidden.grad.tolist(),
        "rows": own_rows.grad.tolist(),
        "ranks": places.tolist(),
    }


@pytest.mark.parametrize("cut", [20, 0])
def test_rows_on_two_ranks_equal_one(two_ranks: Ranks, cut: int) -> None:
    """Unequal shares of positions; with ``cut`` 0 the first rank has none and still joins every collective."""
    hidden, rows, item, inactive, weight = problem()
    found = two_ranks(on_a_rank, [list(range(cut)), list(range(cut, P))])
    hidden, rows = hidden.double().requires_grad_(), rows.double().requires_grad_()
    expected = full(hidden, rows, item, inactive)
    grad_hidden, grad_rows = torch.autograd.grad((weight * expected).sum(), [hidden, rows])

    def joined(name: str) -> Tensor:
        return torch.tensor([value for part in found for value in part[name]], dtype=torch.float64)

    torch.testing.assert_close(joined("log_prob"), expected)
    torch.testing.assert_close(joined("hidden"), grad_hidden)
    torch.testing.assert_close(joined("rows"), grad_rows)
    assert [r for part in found for r in part["ranks"]] == brute_ranks(hidden, rows, item, inactive, seen_items(item))
