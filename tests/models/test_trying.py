"""Items tried after a history against the plain forward pass of a sequence that ends in the item."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from retilt.models import trying
from retilt.models.backbone import Model
from retilt.models.hstu import HSTU
from retilt.models.sasrec import SASRec
from retilt.models.trying import Slots, Tried
from retilt.types import MICROSECONDS

N, WIDTH, ITEMS = 7, 6, 3
MODELS: dict[str, Model] = {
    "hstu": HSTU(max_length=N, width=WIDTH, blocks=2, heads=2, head_width=3),
    "sasrec": SASRec(max_length=N, width=WIDTH, blocks=2, heads=2, feedforward_width=5),
}
LENGTHS = (8, 3, 6)
"""Events of the users; the first has a full window, so that place N is tried after N inputs."""
USER, PLACE = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1, 5, 7, 2, 3, 5])


@pytest.fixture(params=MODELS)
def backbone(request: pytest.FixtureRequest) -> nn.Module:
    """One that also takes N + 1 inputs in the plain way: what place N and its distance to the first event are clamped
    to stands where they would look it up, the distance at an index of −1.
    """
    torch.manual_seed(0)
    found = MODELS[request.param].build(0.5).double()
    for module in found.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            wider = parameter.detach() * (1 if name == "position" else 4)  # scores that differ
            if name in ("position", "w_position"):
                wider = torch.cat([wider, wider[-1:] if name == "position" else wider[:1]])
            setattr(module, name, nn.Parameter(wider))
    return found


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of the inputs, times of all events, which inputs are no padding, embeddings of what is tried."""
    torch.manual_seed(1)
    events, columns = torch.tensor(LENGTHS)[:, None], torch.arange(N + 1)
    valid = columns[:-1] < events
    x = torch.randn(len(LENGTHS), N, WIDTH, dtype=torch.float64) * valid[:, :, None]
    time = torch.randint(0, 10**6, (len(LENGTHS), N + 1)).sort(1).values.gather(1, columns.minimum(events - 1))
    return x, time * MICROSECONDS, valid, torch.randn(len(USER), ITEMS, WIDTH, dtype=torch.float64)


def tried(backbone: nn.Module, x: Tensor, time: Tensor, valid: Tensor, item: Tensor) -> Tensor:
    """States of the tried items, (P, K, D)."""
    slots = Slots(USER, len(LENGTHS))
    what = Tried(slots.spread(item).flatten(1, 2), slots.spread(PLACE), None)
    _, state = backbone(x, time, valid, None, what)
    return slots.collect(state.unflatten(1, (slots.shape[1], ITEMS)))


def plain(backbone: nn.Module, x: Tensor, time: Tensor, valid: Tensor, item: Tensor, longest: int = N) -> Tensor:
    """The same, a sequence for each item: it has the item's time, and so has the request after it."""
    found = []
    for user, place, its in zip(USER.tolist(), PLACE.tolist(), item, strict=True):
        for each in its if place <= longest else ():
            sequence = torch.cat([x[user, :place], each[None]])[None]
            times = torch.cat([time[user, : place + 1], time[user, place : place + 1]])[None]
            found.append(backbone(sequence, times, torch.ones(1, place + 1, dtype=torch.bool), None)[0, -1])
    return torch.stack(found).unflatten(0, (-1, ITEMS))


def test_equals_the_sequence_that_ends_in_the_item(backbone: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, time, valid, item = inputs()
    wanted = plain(backbone, x, time, valid, item)
    assert (wanted[:, 0] - wanted[:, 1]).abs().min() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(tried(backbone, x, time, valid, item), wanted, rtol=1e-9, atol=1e-9)
        hidden = backbone(x, time, valid, None)
        slots = Slots(USER, len(LENGTHS))
        what = Tried(slots.spread(item).flatten(1, 2), slots.spread(PLACE), None)
        assert torch.equal(backbone(x, time, valid, None, what)[0], hidden)
    monkeypatch.setattr(trying, "SCORES", 1)  # a tile for each user
    torch.testing.assert_close(tried(backbone, x, time, valid, item), wanted, rtol=1e-9, atol=1e-9)


def test_gradients_go_through_the_keys_and_values_of_the_history(backbone: nn.Module) -> None:
    x, time, valid, item = inputs()
    inside = PLACE < N  # the plain backward pass has no negative index
    weight = torch.randn(int(inside.sum()), ITEMS, WIDTH, dtype=torch.float64)

    def gradients(states: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), item.clone().requires_grad_()]
        return list(torch.autograd.grad((states(*leaves) * weight).sum(), [*leaves, *backbone.parameters()]))

    mine = gradients(lambda x, item: tried(backbone, x, time, valid, item)[inside])
    theirs = gradients(lambda x, item: plain(backbone, x, time, valid, item, longest=N - 1))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert mine[0].abs().sum() > 0


def test_sees_events_before_its_place_only(backbone: nn.Module) -> None:
    """Neither the event at its place, nor later ones, nor what else is tried."""
    x, time, valid, item = inputs()
    with torch.no_grad():
        before = tried(backbone, x, time, valid, item)
        later = x.clone()
        later[0, 5:] += 1
        after = tried(backbone, later, time, valid, item)
        assert torch.equal(after[:2], before[:2])
        assert not torch.equal(after[2], before[2])
        other = item.clone()
        other[:, 1] += 1
        after = tried(backbone, x, time, valid, other)
        torch.testing.assert_close(after[:, ::2], before[:, ::2], rtol=1e-12, atol=1e-12)
        assert not torch.equal(after[:, 1], before[:, 1])


def test_a_batch_without_users_or_places(backbone: nn.Module) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for users in (0, 2):
        slots = Slots(nothing, users)
        what = Tried(slots.spread(torch.zeros(0, 2, WIDTH).double()).flatten(1, 2), slots.spread(nothing), None)
        arguments = torch.zeros(users, N, WIDTH).double(), torch.zeros(users, N + 1).long()
        _, state = backbone(*arguments, torch.zeros(users, N, dtype=torch.bool), None, what)
        assert slots.collect(state.unflatten(1, (slots.shape[1], 2))).shape == (0, 2, WIDTH)
