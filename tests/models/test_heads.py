"""What heads say before they are trained, and what they must not know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models import test_policy
from tests.models.test_policy import ITEMS, SETTINGS

from retilt.models.catalog import ReplicatedTable
from retilt.models.heads import Head, RewardHead, Unit, ValueHead
from retilt.models.policy import CataloguePolicy, Network
from retilt.types import Batch

UNIT = Unit(3.5, 1.25)


def policy(head: Head | None, dropout: float = 0.5) -> CataloguePolicy:
    torch.manual_seed(0)
    network = Network(SETTINGS.build(dropout), ReplicatedTable(ITEMS, 6, 1, "adam", 1e-3), head=head)
    return CataloguePolicy(SETTINGS, network, network.table, torch.ones(ITEMS + 1, dtype=torch.bool))  # type: ignore[arg-type]


def batch() -> Batch:
    """Without what evaluation adds: it can be cut."""
    return replace(test_policy.batch(), seen_item=None, seen_length_P=None, untied_P=None)


def strong() -> RewardHead:
    """One that has been trained: what is zero at first is not."""
    head = RewardHead(6, UNIT, ITEMS)
    with torch.no_grad():
        head.set_item_bias(3.5 * torch.arange(ITEMS + 1.0) + 2.0, torch.arange(ITEMS + 1.0))
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    return head


def targets(whole: Batch) -> torch.Tensor:
    return whole.target_item_P[:, None]


def test_a_value_starts_at_the_mean_reward_and_learns() -> None:
    found, whole = policy(ValueHead(6, UNIT)), batch()
    now = found.train(0)(whole)
    assert now.head_P is not None
    assert now.head_P.tolist() == [3.5] * 18
    now.head_P.sum().backward()
    last = found.network.get_parameter("head.net.2.bias")
    assert last.grad is not None
    assert last.grad.item() == pytest.approx(18 * 1.25)
    assert policy(None).train(0)(whole).head_P is None


def test_a_reward_starts_at_the_mean_and_strong_at_the_biases() -> None:
    whole = batch()
    assert policy(RewardHead(6, UNIT)).exact(whole).head_P.tolist() == [3.5] * 18  # type: ignore[union-attr]
    head = RewardHead(6, UNIT, ITEMS)
    head.set_item_bias(3.5 * torch.arange(ITEMS + 1.0) + 2.0, torch.arange(ITEMS + 1.0))
    found = policy(head).score(whole, targets(whole))[:, 0]

    def bias(item: int) -> float:
        return 2.0 / (item + 10)

    items, rewards = whole.item_BT[1, :4].tolist(), whole.reward_BT[1, :4].tolist()
    for place in (1, 2, 3):
        past = [reward - 3.5 - bias(item) for item, reward in zip(items[:place], rewards[:place], strict=True)]
        wanted = 3.5 + bias(items[place]) + sum(past) / (place + 5)
        assert found[9 + place - 1].item() == pytest.approx(wanted, rel=1e-5)


def test_strong_knows_rewards_of_earlier_events_only() -> None:
    """Positions 0 … 8 are the first user's, of whom event 5's reward changes: targets 1 … 5 know nothing of it."""
    found, whole = policy(strong()), batch()
    reward = whole.reward_BT.clone()
    reward[0, 5] += 3
    before, after = found.exact(whole), found.exact(replace(whole, reward_BT=reward))
    assert before.head_P is not None
    assert after.head_P is not None
    assert torch.equal(before.head_P[:5], after.head_P[:5])
    assert (before.head_P[5:9] != after.head_P[5:9]).all()
    assert torch.equal(before.head_P[9:], after.head_P[9:])
    # The state that predicts event 6 has read event 5 and its reward; that of event 5 has not.
    assert torch.equal(before.hidden_PD[:5], after.hidden_PD[:5])
    assert not torch.equal(before.hidden_PD[5], after.hidden_PD[5])


def test_training_asks_of_the_logged_item_what_score_says_of_it() -> None:
    found, whole = policy(strong()), batch()
    now = found.train(4, dropout=False)(whole)
    assert now.head_P is not None
    torch.testing.assert_close(now.head_P.detach(), found.score(whole, targets(whole))[:, 0])
    item_PK = torch.stack([whole.target_item_P, whole.target_item_P % ITEMS + 1], dim=1)
    both = found.score(whole, item_PK)
    torch.testing.assert_close(both[:, 0], now.head_P.detach())
    some = whole.contexts(torch.rand(whole.item_BT.shape, generator=torch.Generator().manual_seed(1)) < 0.4)
    kept = some.supervised_BT[whole.supervised_BT]
    assert 0 < int(kept.sum()) < 18
    torch.testing.assert_close(found.score(some, item_PK[kept]), both[kept])


def test_dropout_of_what_is_tried_depends_on_the_step_and_can_be_left_out() -> None:
    found, whole = policy(strong()), batch()

    def says(step: int, dropout: bool = True) -> torch.Tensor:
        head_P = found.train(step, dropout)(whole).head_P
        assert head_P is not None
        return head_P.detach()

    assert torch.equal(says(1), says(1))
    assert not torch.equal(says(1), says(2))
    assert torch.equal(says(1, dropout=False), says(2, dropout=False))
    assert found.train(1)(whole).hidden_PD.isfinite().all()


def test_a_positions_key_is_its_own_in_any_batch() -> None:
    found, whole = policy(None), batch()
    keys = found.train(3).keys(whole)
    assert keys.dtype == torch.int32
    assert len(set(keys.tolist())) == 18
    assert torch.equal(found.keys(whole.select(torch.tensor([1]))), keys[9:12])
    assert not torch.equal(found.train(4).keys(whole), keys)
    fewer = whole.contexts(whole.item_BT % 2 == 0)
    assert torch.equal(found.train(3).keys(fewer), keys[fewer.supervised_BT[whole.supervised_BT]])
