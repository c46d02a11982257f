"""The tiled softmax against the full matrix of logits, in one process and with its rows on two ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.spawning import Ranks
from torch import Tensor
from torch.nn.functional import normalize

from retilt import ranks
from retilt.models import ranking, sampling, softmax, tiles
from retilt.models.softmax import CatalogueSoftmax, Rows

P, V, D = 37, 501, 8
SHARES = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def problem(tilted: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, rows, items, biases and weights; row 0 is padding, rows 7 and 500 are withdrawn.

    The other biases are 0, or up to 6 nats where ``tilted``.
    """
    generator = torch.Generator().manual_seed(3)
    hidden, rows = torch.randn(P, D, generator=generator), torch.randn(V, D, generator=generator)
    rows[0] = 0.0
    item = torch.randint(8, V - 1, (P,), generator=generator)
    weight = torch.rand(P, generator=generator).double()
    bias = tilted * 2 * torch.randn(V, generator=generator)
    bias[[0, 7, 500]] = -torch.inf
    return 3 * hidden.double(), rows.double(), item, bias, weight


def several(item: Tensor) -> Tensor:
    """Three items a position: the first again as the second."""
    return torch.stack([item, item, item.flip(0)], 1)


def policy(hidden: Tensor, rows: Tensor, bias: Tensor) -> CatalogueSoftmax:
    return CatalogueSoftmax(hidden, rows, Rows(0, len(rows), bias, False))


def full(hidden: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """log π of every item, (P, V)."""
    return (hidden @ normalize(rows, dim=1, eps=1e-6).T + bias).log_softmax(1)


def other_policy(hidden: Tensor, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, rows and biases of another policy over the same items."""
    return hidden.detach().flip(0), rows.detach().roll(5, 1), bias / 2


def full_kl(own: Tensor, other: Tensor | None) -> Tensor:
    """From one policy's log-probabilities to another's, or without one the negative entropy."""
    active = own[0] > -torch.inf
    own = own[:, active]
    return (own.exp() * (own if other is None else own - other[:, active])).sum(1)


def small_tiles(monkeypatch: pytest.MonkeyPatch, rows: int, positions: int) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", rows)
    for module in (tiles, softmax, ranking, sampling):
        monkeypatch.setattr(module, "TILE_POSITIONS", positions)
    monkeypatch.setattr(ranking, "TILE_ROWS", rows)


def equal_gradients(found: Tensor, expected: Tensor, weight: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((weight * expected).sum(), leaves, retain_graph=True)
    for mine, theirs in zip(torch.autograd.grad((weight * found).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize(("tile_rows", "tile_positions"), [(2048, 256), (100, 10), (1, 37)])
def test_equals_the_full_matrix(
    tile_rows: int, tile_positions: int, tilted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, tile_rows, tile_positions)
    hidden, rows, item, bias, weight = problem(tilted)
    leaves = [hidden.requires_grad_(), rows.requires_grad_()]
    found, wanted = policy(hidden, rows, bias), full(hidden, rows, bias)
    equal_gradients(found.log_prob(item), wanted.gather(1, item[:, None])[:, 0], weight, leaves)
    items, weights = several(item), torch.stack([weight, -weight.flip(0), weight**2], 1)
    equal_gradients(found.log_prob(items), wanted.gather(1, items), weights, leaves)
    equal_gradients(found.entropy(), -full_kl(wanted, None), weight, leaves)
    other = other_policy(hidden, rows, bias)
    kl = found.kl(policy(*other))
    equal_gradients(kl, full_kl(wanted, full(*other)), weight, leaves)
    assert (kl > 0).all()
    kl, entropy = found.kl_and_entropy(policy(*other))
    equal_gradients(kl, full_kl(wanted, full(*other)), weight, leaves)
    torch.testing.assert_close(entropy, -full_kl(wanted, None))
    assert not entropy.requires_grad
    kept = torch.arange(P) % 3 == 1
    some = found.at(kept)
    torch.testing.assert_close(some.log_prob(item[kept]), wanted.gather(1, item[:, None])[kept, 0])
    torch.testing.assert_close(some.entropy(), entropy[kept])


def test_the_kl_of_a_policy_to_itself_is_zero() -> None:
    hidden, rows, _, bias, _ = problem(tilted=True)
    found = policy(hidden, rows, bias)
    torch.testing.assert_close(found.kl(found), torch.zeros(P, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_bias_multiplies_the_probability() -> None:
    """Item 20 is tilted by ln 3: it gets 3π / (1 + 2π), every other item π / (1 + 2π)."""
    hidden, rows, _, bias, _ = problem()
    before = policy(hidden, rows, bias)
    bias = bias.clone()
    bias[20] = math.log(3)
    items = torch.tensor([20, 30]).expand(P, 2)
    plain = before.log_prob(items).exp()
    expected = plain * torch.tensor([3, 1]) / (1 + 2 * plain[:, :1])
    torch.testing.assert_close(policy(hidden, rows, bias).log_prob(items).exp(), expected, rtol=1e-6, atol=0)


def test_a_withdrawn_item_gets_its_logit_among_the_active_ones() -> None:
    """Without it Z is 1 − π(7) of what it is with it: log π(7) − log(1 − π(7))."""
    hidden, rows, _, bias, _ = problem()
    target = torch.full((P,), 7)
    found = policy(hidden, rows, bias).log_prob(target)
    bias[7] = 0
    there = policy(hidden, rows, bias).log_prob(target)
    torch.testing.assert_close(found, there - torch.log1p(-there.exp()))


@pytest.mark.parametrize("tilted", [False, True])
def test_float32_is_as_good_as_float32_can_be(tilted: bool) -> None:
    hidden, rows, item, bias, _ = problem(tilted)
    found = policy(7 * hidden.float(), rows.float(), bias)
    exact = full(7 * hidden.float().double(), rows.float().double(), bias.double())
    items = several(item)
    torch.testing.assert_close(found.log_prob(items).double(), exact.gather(1, items), rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(found.entropy().double(), -full_kl(exact, None), rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_no_position_gives_no_value_and_zero_gradients(shape: tuple[int, ...]) -> None:
    hidden, rows, _, bias, _ = problem()
    hidden, rows = hidden[:0].requires_grad_(), rows.requires_grad_()
    found = policy(hidden, rows, bias).log_prob(torch.empty(shape, dtype=torch.int64))
    found.sum().backward()
    assert found.shape == shape
    assert rows.grad is not None
    assert not rows.grad.any()


def on_a_rank(shares: list[list[int]]) -> dict[str, Any]:
    """This rank's rows and positions; every returned tensor is a list so that it crosses the pipe by value."""
    hidden, rows, item, bias, weight = problem(tilted=True)
    block = -(-V // ranks.world())
    first = ranks.rank() * block
    mine, held = shares[ranks.rank()], slice(first, first + block)
    own_hidden = hidden[mine].clone().requires_grad_()
    own_rows = rows[held].clone().requires_grad_()
    found = CatalogueSoftmax(own_hidden, own_rows, Rows(first, first + len(own_rows), bias[held], True))
    other_hidden, other_rows, other_bias = other_policy(hidden, rows, bias)
    other_cover = Rows(first, first + len(own_rows), other_bias[held], True)
    other = CatalogueSoftmax(other_hidden[mine], other_rows[held], other_cover)
    values = {
        "one": found.log_prob(item[mine]),
        "several": found.log_prob(several(item)[mine]) @ SHARES,
        "entropy": found.entropy(),
        "kl": found.kl(other),
    }
    result = {name: value.tolist() for name, value in values.items()}
    result["beside"] = found.kl_and_entropy(other)[1].tolist()
    result["some"] = found.at(torch.tensor(mine) % 3 == 1).kl(other.at(torch.tensor(mine) % 3 == 1)).tolist()
    for name, value in values.items():
        grads = torch.autograd.grad((weight[mine] * value).sum(), [own_hidden, own_rows])
        result |= {f"{name}.hidden": grads[0].tolist(), f"{name}.rows": grads[1].tolist()}
    return result


@pytest.mark.parametrize("cut", [20, 0])
def test_rows_on_two_ranks_equal_one(two_ranks: Ranks, cut: int) -> None:
    """Unequal shares of positions; with ``cut`` 0 the first rank has none and still joins every collective."""
    hidden, rows, item, bias, weight = problem(tilted=True)
    found = two_ranks(on_a_rank, [list(range(cut)), list(range(cut, P))])
    leaves = [hidden.requires_grad_(), rows.requires_grad_()]
    wanted = full(hidden, rows, bias)
    expected = {
        "one": wanted.gather(1, item[:, None])[:, 0],
        "several": wanted.gather(1, several(item)) @ SHARES,
        "entropy": -full_kl(wanted, None),
        "kl": full_kl(wanted, full(*other_policy(hidden, rows, bias))),
    }

    def joined(name: str) -> Tensor:
        return torch.tensor([value for part in found for value in part[name]], dtype=torch.float64)

    torch.testing.assert_close(joined("beside"), expected["entropy"])
    torch.testing.assert_close(joined("some"), expected["kl"][torch.arange(P) % 3 == 1])
    for name, value in expected.items():
        grads = torch.autograd.grad((weight * value).sum(), leaves, retain_graph=True)
        torch.testing.assert_close(joined(name), value)
        torch.testing.assert_close(joined(f"{name}.hidden"), grads[0])
        torch.testing.assert_close(joined(f"{name}.rows"), grads[1])
