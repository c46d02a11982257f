"""The tiled softmax against the full matrix of logits, in one process and with its rows on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.spawning import Ranks
from torch import Tensor
from torch.nn.functional import normalize

from retilt import ranks
from retilt.models import ranking, softmax, tiles
from retilt.models.softmax import CatalogueSoftmax, Rows

P, V, D = 37, 501, 8


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, rows, items, inactive rows and weights; row 0 is padding, rows 7 and 500 are withdrawn."""
    generator = torch.Generator().manual_seed(3)
    hidden, rows = torch.randn(P, D, generator=generator), torch.randn(V, D, generator=generator)
    rows[0] = 0.0
    inactive = torch.zeros(V, dtype=torch.bool)
    inactive[[0, 7, 500]] = True
    item = torch.randint(8, V - 1, (P,), generator=generator)
    return 3 * hidden.double(), rows.double(), item, inactive, torch.rand(P, generator=generator).double()


def bias(inactive: Tensor) -> Tensor:
    return torch.zeros(len(inactive)).masked_fill(inactive, -torch.inf)


def policy(hidden: Tensor, rows: Tensor, inactive: Tensor) -> CatalogueSoftmax:
    return CatalogueSoftmax(hidden, rows, Rows(0, len(rows), bias(inactive), False))


def full(hidden: Tensor, rows: Tensor, inactive: Tensor) -> Tensor:
    """log π of every item, (P, V)."""
    return (hidden @ normalize(rows, dim=1, eps=1e-6).T).masked_fill(inactive, -torch.inf).log_softmax(1)


def full_log_prob(hidden: Tensor, rows: Tensor, item: Tensor, inactive: Tensor) -> Tensor:
    return full(hidden, rows, inactive).gather(1, item[:, None]).squeeze(1)


def full_kl(hidden: Tensor, rows: Tensor, inactive: Tensor, other: Tensor | None) -> Tensor:
    """KL to another policy's log-probabilities, or without one the negative entropy."""
    own = full(hidden, rows, inactive)[:, ~inactive]
    return (own.exp() * (own if other is None else own - other[:, ~inactive])).sum(1)


def small_tiles(monkeypatch: pytest.MonkeyPatch, rows: int, positions: int) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", rows)
    for module in (tiles, softmax, ranking):
        monkeypatch.setattr(module, "TILE_POSITIONS", positions)
    monkeypatch.setattr(ranking, "TILE_ROWS", rows)


def equal_gradients(found: Tensor, expected: Tensor, weight: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((weight * expected).sum(), leaves)
    for mine, theirs in zip(torch.autograd.grad((weight * found).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("tile_rows", "tile_positions"), [(2048, 256), (100, 10), (1, 37)])
def test_equals_the_full_matrix(tile_rows: int, tile_positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, tile_rows, tile_positions)
    hidden, rows, item, inactive, weight = problem()
    leaves = [hidden.requires_grad_(), rows.requires_grad_()]
    found = policy(hidden, rows, inactive)
    equal_gradients(found.log_prob(item), full_log_prob(hidden, rows, item, inactive), weight, leaves)
    equal_gradients(found.entropy(), -full_kl(hidden, rows, inactive, None), weight, leaves)
    other_hidden, other_rows = hidden.detach().flip(0), rows.detach().roll(5, 1)
    other = full(other_hidden, other_rows, inactive)
    kl = found.kl(policy(other_hidden, other_rows, inactive))
    equal_gradients(kl, full_kl(hidden, rows, inactive, other), weight, leaves)
    assert (kl > 0).all()


def test_the_kl_of_a_policy_to_itself_is_zero() -> None:
    hidden, rows, _, inactive, _ = problem()
    found = policy(hidden, rows, inactive)
    torch.testing.assert_close(found.kl(found), torch.zeros(P, dtype=torch.float64), rtol=0, atol=1e-12)


def test_float32_is_as_good_as_float32_can_be() -> None:
    hidden, rows, item, inactive, _ = problem()
    found = policy(7 * hidden.float(), rows.float(), inactive)
    exact = 7 * hidden.float().double(), rows.float().double(), inactive
    torch.testing.assert_close(
        found.log_prob(item).double(), full_log_prob(*exact[:2], item, inactive), rtol=2e-6, atol=4e-6
    )
    torch.testing.assert_close(found.entropy().double(), -full_kl(*exact, None), rtol=2e-6, atol=4e-6)


def test_no_position_gives_no_value_and_zero_gradients() -> None:
    hidden, rows, _, inactive, _ = problem()
    hidden, rows = hidden[:0].requires_grad_(), rows.requires_grad_()
    found = policy(hidden, rows, inactive).log_prob(torch.empty(0, dtype=torch.int64))
    found.sum().backward()
    assert found.shape == (0,)
    assert rows.grad is not None
    assert not rows.grad.any()


def on_a_rank(shares: list[list[int]]) -> dict[str, Any]:
    """This rank's rows and positions; every returned tensor is a list so that it crosses the pipe by value."""
    hidden, rows, item, inactive, weight = problem()
    block = -(-V // ranks.world())
    first = ranks.rank() * block
    mine, held = shares[ranks.rank()], slice(first, first + block)
    own_hidden = hidden[mine].clone().requires_grad_()
    own_rows = rows[held].clone().requires_grad_()
    cover = Rows(first, first + len(own_rows), bias(inactive[held]), True)
    found = CatalogueSoftmax(own_hidden, own_rows, cover)
    other = CatalogueSoftmax(hidden.flip(0)[mine], rows.roll(5, 1)[held], cover)
    values = {"log_prob": found.log_prob(item[mine]), "entropy": found.entropy(), "kl": found.kl(other)}
    result = {name: value.tolist() for name, value in values.items()}
    for name, value in values.items():
        grads = torch.autograd.grad((weight[mine] * value).sum(), [own_hidden, own_rows])
        result |= {f"{name}.hidden": grads[0].tolist(), f"{name}.rows": grads[1].tolist()}
    return result


@pytest.mark.parametrize("cut", [20, 0])
def test_rows_on_two_ranks_equal_one(two_ranks: Ranks, cut: int) -> None:
    """Unequal shares of positions; with ``cut`` 0 the first rank has none and still joins every collective."""
    hidden, rows, item, inactive, weight = problem()
    found = two_ranks(on_a_rank, [list(range(cut)), list(range(cut, P))])
    leaves = [hidden.requires_grad_(), rows.requires_grad_()]
    other = full(hidden.detach().flip(0), rows.detach().roll(5, 1), inactive)
    expected = {
        "log_prob": full_log_prob(hidden, rows, item, inactive),
        "entropy": -full_kl(hidden, rows, inactive, None),
        "kl": full_kl(hidden, rows, inactive, other),
    }

    def joined(name: str) -> Tensor:
        return torch.tensor([value for part in found for value in part[name]], dtype=torch.float64)

    for name, value in expected.items():
        grads = torch.autograd.grad((weight * value).sum(), leaves)
        torch.testing.assert_close(joined(name), value)
        torch.testing.assert_close(joined(f"{name}.hidden"), grads[0])
        torch.testing.assert_close(joined(f"{name}.rows"), grads[1])
