"""PPO: advantages and the clipped surrogate worked out by hand on the policy of conftest.py, and the place of λ."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tests.algorithms.tabular import TabularPolicy
from tests.spawning import Ranks

from retilt import ranks
from retilt.algorithms.ppo import PPO, Advantage, advantage, others_mean, ppo_loss
from retilt.types import Explored, InputError, Statistics

STATISTICS = Statistics(positions=4, reward_min=1.0, reward_max=5.0, reward_mean=15 / 4)


@pytest.fixture
def valued(policy) -> TabularPolicy:
    """The policy of conftest.py with a value head, which says 0."""
    return TabularPolicy(policy.logits.detach(), value=True)


def explored(batch, policy, reward_PK, factor=1.0, value=0.0, unseen=1.0):
    """Items 1 and 3 drawn at each position from what is now the policy; ``factor`` is its ratio to the old one."""
    now = policy.exact(batch)
    item_PK = torch.tensor([[1, 3]] * 4)
    return Explored(
        **vars(batch),
        item_PK=item_PK,
        reward_PK=torch.tensor(reward_PK),
        log_old_PK=now.log_prob(item_PK) - math.log(factor),
        unseen_P=torch.full((4,), unseen),
        log_reference_PK=now.log_prob(item_PK),
        value_P=torch.full((4,), value),
        reference=now,
    )


def test_advantages_are_whitened_over_the_batch():
    """Rewards less baselines are 1, 3, 1, 3: mean 2, SD 1. Rewards 1, 3, 5, 7 have variance 5, of which 1 is left."""
    found = advantage(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    assert found.whitened_PK.tolist() == [[-1, 1], [-1, 1]]
    assert found.sd.item() == 1
    assert found.square.item() == 5
    assert found.explained.item() == pytest.approx(1 - 1 / 5)


def test_advantages_that_do_not_vary_are_zero():
    found = advantage(torch.full((3, 2), 4.1), torch.full((3, 2), 1.3))
    assert not found.whitened_PK.any()
    assert (found.sd.item(), found.explained.item()) == (1, 0)
    empty = advantage(torch.zeros(0, 2), torch.zeros(0, 2))
    assert (empty.sd.item(), len(empty.whitened_PK)) == (1, 0)


def whitened_share() -> list[float]:
    """Rank 0 has one position, rank 1 two."""
    rows = slice(0, 1) if ranks.rank() == 0 else slice(1, 3)
    reward_PK = torch.tensor([[1.0, 2.0], [5.0, 3.0], [4.0, 1.5]])[rows]
    found = advantage(reward_PK, torch.zeros_like(reward_PK))
    return [*found.whitened_PK.flatten().tolist(), found.sd.item()]


def test_whitening_is_over_all_workers(two_ranks: Ranks):
    reward_PK = torch.tensor([[1.0, 2.0], [5.0, 3.0], [4.0, 1.5]])
    whole = advantage(reward_PK, torch.zeros_like(reward_PK))
    first, second = two_ranks(whitened_share)
    assert [*first[:-1], *second[:-1]] == pytest.approx(whole.whitened_PK.flatten().tolist())
    assert first[-1] == second[-1] == pytest.approx(whole.sd.item())


def test_a_group_is_measured_from_the_others():
    """Their means are (2 + 6)/2, (1 + 6)/2, (1 + 2)/2."""
    assert others_mean(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[4, 3.5, 1.5]]


@pytest.mark.parametrize(
    ("ratio", "sign", "surrogate", "slope"),
    [
        (1.0, 1, 1.0, 1.0),
        (1.1, 1, 1.1, 1.1),
        (1.5, 1, 1.2, 0),
        (0.5, 1, 0.5, 0.5),
        (1.5, -1, -1.5, -1.5),
        (0.9, -1, -0.9, -0.9),
        (0.5, -1, -0.8, 0),
    ],
)
def test_a_ratio_is_rewarded_up_to_the_clip_only(ratio, sign, surrogate, slope):
    log_prob_PK = torch.tensor([[math.log(ratio)]], requires_grad=True)
    worth = Advantage(torch.full((1, 1), float(sign)), torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0))
    loss = ppo_loss(log_prob_PK, torch.zeros(1, 1), worth, torch.ones(1), torch.zeros(1), 0.5, 0.2)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(-surrogate)
    assert log_prob_PK.grad.item() == pytest.approx(-slope)
    assert loss.metrics["clip_fraction"].item() == (not 0.8 <= ratio <= 1.2)
    assert loss.metrics["mean_ratio"].item() == pytest.approx(ratio)
    assert loss.metrics["approximate_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-7)


def test_the_divergence_is_divided_by_the_same_deviation():
    worth = Advantage(torch.zeros(2, 1), torch.tensor(4.0), torch.tensor(1.0), torch.tensor(0.0))
    loss = ppo_loss(torch.zeros(2, 1), torch.zeros(2, 1), worth, torch.ones(2), torch.tensor([1.0, 3.0]), 0.5, 0.2)
    assert loss.total.item() == pytest.approx(0.5 / 4 * (1 + 3))
    assert loss.count.item() == 2


def test_what_is_logged(valued, batch):
    """Rewards 1 and 3 everywhere, V = 0: mean 2, SD 1, mean squared error (1 + 9)/2; at ratio 1 the surrogate is 0."""
    loss = PPO().loss(valued, explored(batch, valued, [[1.0, 3.0]] * 4), STATISTICS)
    found = {name: value.item() for name, value in loss.metrics.items()}
    assert found["mean_ratio"] == 4
    assert found["clip_fraction"] == found["approximate_kl"] == found["kl"] == found["explained_variance"] == 0
    assert found["reward_model_score"] == 8
    assert found["value_loss"] == 20
    assert found["entropy"] == pytest.approx(4 * (1 / 2 + 2 / 4 + 3 / 8 + 3 / 8) * math.log(2))
    assert loss.total.item() == pytest.approx(0.1 * 4)


def test_without_a_value_head_there_is_no_value_loss(policy, batch):
    """Each of two draws is measured from the other: advantages −2 and 2, whitened −1 and 1."""
    loss = PPO(baseline="group").loss(policy, explored(batch, policy, [[1.0, 3.0]] * 4, factor=1.1), STATISTICS)
    assert loss.total.item() == pytest.approx(0, abs=1e-6)
    assert not {"value_loss", "explained_variance"} & set(loss.metrics)
    loss.total.backward()
    assert (policy.logits.grad[[1, 2, 4], 1] > 0).all()
    assert (policy.logits.grad[[1, 2, 4], 3] < 0).all()


@pytest.mark.parametrize("scale", [1 / 8, 1024.0])
@pytest.mark.parametrize("baseline", ["value", "group"])
def test_scaling_rewards_values_and_temperature_together_changes_nothing(valued, batch, baseline, scale):
    rewards = [[1.0, 5.0], [2.0, 4.0], [5.0, 3.0], [1.0, 2.0]]
    gradients = []
    for factor in (1.0, scale):
        policy = TabularPolicy(valued.logits.detach() + torch.linspace(-0.1, 0.1, 5), value=True)
        policy.value.data += 2 * factor
        tried = explored(batch, valued, [[reward * factor for reward in each] for each in rewards], 1.05, 2 * factor)
        PPO(temperature=0.5 * factor, baseline=baseline).loss(policy, tried, STATISTICS).total.backward()
        gradients.append(policy.logits.grad[:, 1:])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


def test_what_is_refused():
    for wrong in ({"draws": 0}, {"clip": 1.0}, {"value_coefficient": -0.1}, {"temperature": 0.0}, {"passes": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            PPO(**wrong)
    with pytest.raises(ValidationError, match="'group' needs draws of at least 2"):
        PPO(baseline="group", draws=1)
    with pytest.raises(InputError, match="every training reward is 5: there is nothing"):
        PPO().check(Statistics(positions=4, reward_min=5.0, reward_max=5.0, reward_mean=5.0))
