"""The sampled softmax against its formula written out, its draws against their probabilities, its bias against R."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import pytest
import torch
from tests.spawning import Ranks
from torch import Tensor
from torch.nn.functional import normalize

from retilt import ranks
from retilt.models import sampled, tiles
from retilt.models.sampled import Candidates, SampledSoftmax, Sampler
from retilt.types import Batch, InputError

V, D = 60, 6
Proposal = Literal["uniform", "popularity", "in_batch"]
Negatives = Literal["shared", "per_position"]
WAYS: list[tuple[Proposal, Negatives]] = [
    ("uniform", "shared"),
    ("uniform", "per_position"),
    ("popularity", "shared"),
    ("popularity", "per_position"),
    ("in_batch", "shared"),
]


def counts() -> Tensor:
    """Items 1 … V with 1 … V training events; item 5 is withdrawn, 7 was never trained on."""
    found = torch.arange(V + 1)
    found[7] = 0
    return found


def active() -> Tensor:
    found = torch.ones(V + 1, dtype=torch.bool)
    found[[0, 5]] = False
    return found


def sampler(proposal: Proposal, negatives: Negatives, count: int, logq: bool = True) -> Sampler:
    return Sampler.of(proposal, negatives, count, logq, active(), counts())


def q(proposal: Proposal) -> Tensor:
    mass = (active().double() if proposal == "uniform" else counts() * active()).double()
    return mass / mass.sum()


def batch(users: int, length: int, seed: int = 0) -> Batch:
    """Targets are drawn by popularity, as in-batch negatives assume."""
    generator = torch.Generator().manual_seed(seed)
    item = torch.multinomial(q("popularity"), users * length, replacement=True, generator=generator)
    item = item.view(users, length)
    supervised = torch.ones(users, length, dtype=torch.bool)
    supervised[:, 0] = False
    return Batch(item, item.float(), item * 0, supervised, torch.full((users,), length), torch.arange(users) + 100)


def tensors(positions: int, temperature: float = 0.3) -> tuple[Tensor, Tensor]:
    """Hidden states and the rows of all items, float64."""
    generator = torch.Generator().manual_seed(1)
    hidden = normalize(torch.randn(positions, D, generator=generator, dtype=torch.float64), dim=1) / temperature
    return hidden, torch.randn(V + 1, D, generator=generator, dtype=torch.float64)


def softmax(hidden: Tensor, rows: Tensor, target: Tensor, drawn: Candidates) -> SampledSoftmax:
    return SampledSoftmax(hidden, target, rows[target], rows[drawn.item_K], drawn)


def by_the_formula(
    hidden: Tensor, rows: Tensor, target: Tensor, draws: list[list[int]], q_V: Tensor | None, of: int
) -> Tensor:
    """One draw after the other, in Python; ``of`` draws of which those equal to the target are left out."""
    logits = hidden @ normalize(rows, dim=1).T
    found = []
    for row, item, negatives in zip(logits, target.tolist(), draws, strict=True):
        total = row[item].exp()
        for negative in negatives:
            if negative != item:
                total = total + row[negative].exp() / (1 if q_V is None else of * q_V[negative])
        found.append(row[item] - total.log())
    return torch.stack(found)


def draws_of(found: Sampler, drawn: Candidates, each: Batch, step: int) -> list[list[int]]:
    """The draws of each position, with repetitions."""
    targets = each.target_item_P
    if found.proposal == "in_batch":
        return [targets.tolist()] * len(targets)
    if drawn.place_PR is not None:
        assert drawn.place_PR.shape[1] == found.count
        return [drawn.item_K[places].tolist() for places in drawn.place_PR]
    # How often an item was drawn is in its bias.
    once = -math.log(found.count) if found.logq else 0.0
    logq = found.log_q(drawn.item_K) if found.logq else 0 * drawn.bias_K
    times = (drawn.bias_K + logq - once).exp().round().long()
    assert int(times.sum()) == found.count
    return [drawn.item_K.repeat_interleave(times).tolist()] * len(targets)


@pytest.mark.parametrize("logq", [True, False])
@pytest.mark.parametrize(("proposal", "negatives"), WAYS)
def test_equals_the_formula(
    proposal: Proposal, negatives: Negatives, logq: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", 7)
    monkeypatch.setattr(tiles, "TILE_POSITIONS", 5)
    monkeypatch.setattr(sampled, "PAIR_NUMBERS", 1000)
    each, found = batch(4, 9), sampler(proposal, negatives, 50, logq)
    target = each.target_item_P
    hidden, rows = tensors(len(target))
    leaves = [hidden.requires_grad_(), rows.requires_grad_()]
    drawn = found.draw(each, 3, 11)
    value = softmax(hidden, rows, target, drawn).log_prob(target)
    draws = draws_of(found, drawn, each, 11)
    assert any(item in negatives for item, negatives in zip(target.tolist(), draws, strict=True))  # accidental hits
    of = len(target) - 1 if proposal == "in_batch" else found.count
    expected = by_the_formula(hidden, rows, target, draws, q(proposal) if logq else None, of)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)  # log q is float32
    weight = torch.linspace(0.1, 2, len(target), dtype=torch.float64)
    wanted = torch.autograd.grad((weight * expected).sum(), leaves)
    for mine, theirs in zip(torch.autograd.grad((weight * value).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("proposal", ["uniform", "popularity"])
def test_items_are_drawn_by_their_probability(proposal: Proposal) -> None:
    """Over 400 steps and 32,000 draws every share is within five standard errors; item 5 never comes."""
    found = sampler(proposal, "shared", 80)
    times = torch.zeros(V + 1, dtype=torch.float64)
    for step in range(400):
        drawn = found.draw(batch(1, 2), 0, step)
        times[drawn.item_K] += torch.tensor(draws_of(found, drawn, batch(1, 2), step)[0]).bincount(minlength=V + 1)[
            drawn.item_K
        ]
    expected = q(proposal) * times.sum()
    assert (times - expected).abs().le(5 * expected.sqrt()).all()
    assert times[5] == 0
    torch.testing.assert_close(found.log_q(torch.arange(1, V + 1)).double().exp(), q(proposal)[1:], rtol=1e-5, atol=0)


def test_every_position_and_every_step_draws_anew() -> None:
    found, each = sampler("uniform", "per_position", 16), batch(3, 4)
    first, again, later = (found.draw(each, 0, step) for step in (1, 1, 2))
    rows = [first.item_K[places].tolist() for places in (first.place_PR if first.place_PR is not None else [])]
    assert len({tuple(row) for row in rows}) == len(rows) == 9
    assert first.place_PR is not None
    assert again.place_PR is not None
    assert torch.equal(first.item_K[first.place_PR], again.item_K[again.place_PR])
    assert later.place_PR is not None
    assert not torch.equal(first.item_K[first.place_PR], later.item_K[later.place_PR])


def mean_gradient(found: Sampler, repeats: int, users: int) -> tuple[Tensor, Tensor]:
    """Mean over draws of the gradient by one position's hidden state, and its standard error."""
    hidden, rows = tensors(1, temperature=0.3)
    gradients = []
    for repeat in range(repeats):
        # In-batch: the other users' targets are the draws, so they are new each time.
        each = batch(users if found.proposal == "in_batch" else 1, 2, seed=repeat)
        each.item_BT[0, 1] = 40
        leaf = hidden.clone().requires_grad_()
        drawn = found.draw(each, 0, repeat)
        target = torch.tensor([40])
        places = drawn if drawn.place_PR is None else Candidates(
            drawn.item_K, drawn.bias_K, drawn.place_PR[:1], drawn.bias_PR[:1] if drawn.bias_PR is not None else None
        )  # fmt: skip
        value = softmax(leaf, rows, target, places).log_prob(target)
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0][0])
    stacked = torch.stack(gradients)
    return stacked.mean(0), stacked.std(0) / math.sqrt(repeats)


@pytest.mark.parametrize(("proposal", "negatives"), WAYS)
def test_the_gradient_s_bias_shrinks_as_negatives_grow(proposal: Proposal, negatives: Negatives) -> None:
    """The bias of a ratio estimator is of order 1 / R: sixteen times the draws take at least three quarters of it away.

    Withdrawn and untrained items are taken out of the exact softmax, as popularity cannot draw them.
    """
    hidden, rows = tensors(1, temperature=0.3)
    leaf = hidden.clone().requires_grad_()
    logits = (leaf @ normalize(rows, dim=1).T).masked_fill(q(proposal) == 0, -torch.inf)
    (exact,) = torch.autograd.grad(logits.log_softmax(1)[0, 40], leaf)
    gaps, noise = [], []
    for count, repeats in ((4, 3000), (64, 500)):
        mean, error = mean_gradient(sampler(proposal, negatives, count), repeats, count + 1)
        gaps.append(float((mean - exact[0]).norm()))
        noise.append(float(error.norm()))
    assert gaps[0] > 6 * noise[0], "the bias with few negatives must be seen above the noise"
    assert gaps[1] < gaps[0] / 4 + 3 * noise[1]


def test_a_position_whose_only_negative_is_its_target_has_no_gradient() -> None:
    each = batch(1, 2)
    hidden, rows = tensors(1)
    target = each.target_item_P
    for place in (None, torch.zeros(1, 1, dtype=torch.int64)):
        bias = None if place is None else torch.zeros(1, 1)
        leaves = [hidden.clone().requires_grad_(), rows.clone().requires_grad_()]
        found = softmax(leaves[0], leaves[1], target, Candidates(target, torch.zeros(1), place, bias)).log_prob(target)
        assert found.item() == 0
        for gradient in torch.autograd.grad(found.sum(), leaves):
            assert not gradient.any()


def test_it_knows_the_targets_only() -> None:
    each = batch(1, 4)
    hidden, rows = tensors(3)
    found = softmax(hidden, rows, each.target_item_P, sampler("uniform", "shared", 4).draw(each, 0, 0))
    with pytest.raises(InputError, match="softmax=exact"):
        found.log_prob(each.target_item_P.flip(0) + 1)


def drawn_on_a_rank(proposal: Proposal, negatives: Negatives, shares: list[list[int]]) -> dict[str, Any]:
    whole, mine = batch(4, 5), slice(*shares[ranks.rank()])
    share = Batch(**{name: value[mine] for name, value in vars(whole).items() if value is not None})
    drawn = sampler(proposal, negatives, 9).draw(share, 1, 2)
    items = [] if drawn.place_PR is None else drawn.item_K[drawn.place_PR].tolist()
    return {"shared": drawn.item_K.tolist(), "bias": drawn.bias_K.tolist(), "own": items}


@pytest.mark.parametrize(("proposal", "negatives"), WAYS)
def test_two_ranks_draw_what_one_does(two_ranks: Ranks, proposal: Proposal, negatives: Negatives) -> None:
    alone = drawn_on_a_rank(proposal, negatives, [[0, 4]])
    for cut in (2, 0):
        found = two_ranks(drawn_on_a_rank, proposal, negatives, [[0, cut], [cut, 4]])
        if negatives == "per_position":
            assert list(itertools.chain(*(each["own"] for each in found))) == alone["own"]
        else:
            assert [(each["shared"], each["bias"]) for each in found] == [(alone["shared"], alone["bias"])] * 2
