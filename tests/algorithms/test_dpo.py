"""Online DPO: pairs worked out by hand on the policy of conftest.py, what equal draws do, and the place of λ."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from retilt.algorithms.dpo import DPO, dpo_loss
from retilt.types import Explored, InputError, Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4)
LN2 = math.log(2)


def explored(batch, policy, item_PK, reward_PK, log_reference_PK):
    """``batch`` with given draws; the reference's distribution is the policy's."""
    now = policy.exact(batch)
    return Explored(
        **vars(batch),
        item_PK=torch.tensor(item_PK),
        reward_PK=torch.tensor(reward_PK),
        log_old_PK=now.log_prob(torch.tensor(item_PK)),
        unseen_P=torch.ones(len(item_PK)),
        log_reference_PK=torch.tensor(log_reference_PK),
        value_P=None,
        reference=now,
    )


def test_bradley_terry_labels_ask_for_a_log_ratio_of_the_reward_over_temperature():
    """Where β(Δ₁ − Δ₂) = (r̂₁ − r̂₂)/s, the loss is the entropy of the label, its least value: P = 3/4, 2/3."""
    difference = torch.tensor([math.log(3), math.log(2)])  # (r̂₁ − r̂₂)/s
    temperature, beta = 0.5, 0.25
    reward_PK = torch.stack([difference * temperature / beta, torch.zeros(2)], 1)
    log_ratio_PK = (reward_PK / temperature).requires_grad_()
    loss = dpo_loss(log_ratio_PK, torch.zeros(2, 2), reward_PK, beta, temperature / beta)
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (3 / 4, 2 / 3)]
    assert loss.total.item() == pytest.approx(sum(entropies), rel=1e-6)
    loss.total.backward()
    torch.testing.assert_close(log_ratio_PK.grad, torch.zeros(2, 2), rtol=0, atol=1e-7)


def test_hard_labels_ask_for_ever_more():
    """−log σ(β(Δ_chosen − Δ_rejected)): at Δ = (1, 0) and β = ln 3 it is log(4/3), and log 4 the other way round."""
    log_ratio_PK = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = dpo_loss(log_ratio_PK, torch.zeros(2, 2), torch.tensor([[5.0, 1.0], [1.0, 2.0]]), math.log(3), None)
    assert loss.total.item() == pytest.approx(math.log(4 / 3) + math.log(4))
    assert loss.metrics["accuracy"].item() == 1
    assert loss.metrics["margin"].item() == pytest.approx(0)
    loss.total.backward()
    assert (log_ratio_PK.grad[:, 0] * torch.tensor([-1.0, 1.0]) > 0).all()


def test_two_equal_draws_contribute_log_2_and_no_gradient(policy, batch):
    for labels in ("bradley_terry", "hard"):
        policy.zero_grad()
        same = explored(batch, policy, [[2, 2]] * 4, [[3.0, 3.0]] * 4, [[-1.0, -1.0]] * 4)
        loss = DPO(labels=labels).loss(policy, same, STATISTICS)
        assert loss.total.item() == pytest.approx(4 * LN2)
        assert loss.count.item() == 4
        loss.total.backward()
        assert not policy.logits.grad.any()
        assert loss.metrics["accuracy"].item() == 4 / 2


def test_what_is_logged(policy, batch):
    """Items 1 and 3, of probabilities 1/2 and 1/8 with a uniform reference; the second is worth more at two of four."""
    reference = [[-2 * LN2, -2 * LN2]] * 4
    tried = explored(batch, policy, [[1, 3]] * 4, [[5.0, 1.0], [5.0, 1.0], [1.0, 5.0], [1.0, 5.0]], reference)
    loss = DPO(beta=0.5).loss(policy, tried, STATISTICS)
    found = {name: value.item() for name, value in loss.metrics.items()}
    assert found["chosen_log_prob"] == pytest.approx(-(2 * 1 + 2 * 3) * LN2)
    assert found["rejected_log_prob"] == pytest.approx(-(2 * 3 + 2 * 1) * LN2)
    assert found["margin"] == pytest.approx(0.5 * (2 * 2 - 2 * 2) * LN2)
    assert found["accuracy"] == 2
    assert found["reward_model_score"] == 12
    assert found["kl"] == 0
    assert found["entropy"] == pytest.approx(4 * (1 / 2 + 2 / 4 + 3 / 8 + 3 / 8) * LN2)


def test_a_position_is_worth_the_mean_of_its_pairs():
    """Four draws are two pairs."""
    log_prob_PK = torch.tensor([[-1.0, -2.0, -3.0, -1.5]])
    reward_PK, zeros = torch.tensor([[1.0, 2.0, 4.0, 3.0]]), torch.zeros(1, 2)
    parts = [dpo_loss(log_prob_PK[:, at], zeros, reward_PK[:, at], 0.5, 2.0) for at in (slice(0, 2), slice(2, 4))]
    both = dpo_loss(log_prob_PK, torch.zeros(1, 4), reward_PK, 0.5, 2.0)
    assert both.total.item() == pytest.approx(sum(part.total.item() for part in parts) / 2)
    assert both.count.item() == 1


@pytest.mark.parametrize("scale", [1 / 8, 1024.0])
def test_scaling_rewards_and_temperature_together_changes_nothing(policy, batch, scale):
    tried = [[1.0, 5.0], [2.0, 4.0], [5.0, 3.0], [1.0, 1.0]], [[-2.0, -1.0]] * 4
    scaled = [[reward * scale for reward in each] for each in tried[0]], tried[1]
    losses = [
        DPO(temperature=0.5 * factor).loss(policy, explored(batch, policy, [[1, 3]] * 4, *values), STATISTICS).total
        for factor, values in ((1.0, tried), (scale, scaled))
    ]
    assert losses[0].item() == losses[1].item()


def test_an_empty_share_adds_nothing(policy, empty_share):
    nothing = torch.zeros(0, 2)
    tried = Explored(
        **vars(empty_share),
        item_PK=nothing.long(),
        reward_PK=nothing,
        log_old_PK=nothing,
        unseen_P=nothing[:, 0],
        log_reference_PK=nothing,
        value_P=None,
        reference=policy.exact(empty_share),
    )
    loss = DPO().loss(policy, tried, STATISTICS)
    assert loss.total.item() == 0
    assert loss.count.item() == 0


def test_what_is_refused():
    for wrong in ({"draws": 3}, {"draws": 0}, {"beta": 0.0}, {"temperature": -1.0}, {"passes": 0}, {"contexts": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            DPO(**wrong)
    with pytest.raises(InputError, match="every training reward is 5: there is nothing"):
        DPO().check(Statistics(positions=4, reward_min=5.0, reward_max=5.0, reward_mean=5.0))
