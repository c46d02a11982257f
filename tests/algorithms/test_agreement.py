"""Where the reward is known, exp_rsft on a log, ppo and dpo end at the same policy: π_ref · exp(r/λ) / Z.

A world of 20 items in two states, π_β = π_ref and r drawn once. The methods are the repository's, from the draws to the
loss; the policy is a table, so that nothing but a method can keep it from its optimum.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.algorithms.tabular import TabularPolicy
from torch.nn.functional import pad

from retilt.algorithms.bc import BC
from retilt.algorithms.dpo import DPO
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.online import Online
from retilt.algorithms.ppo import PPO
from retilt.algorithms.rsft import RSFT
from retilt.algorithms.top_rated import TopRated
from retilt.training.explore import explore
from retilt.types import Batch, Companions, Statistics

ITEMS, STATES, LOGGED, TEMPERATURE = 20, 2, 1000, 1.0
"""The states are items 21 and 22, which only begin a history."""


class TrueReward:
    """Of each item in each state."""

    def __init__(self, reward_SV: torch.Tensor) -> None:
        self.reward_SV = reward_SV

    def score(self, batch: Batch, item_PK: torch.Tensor) -> torch.Tensor:
        return self.reward_SV[batch.item_BT[:, 0]].gather(1, item_PK)


def world() -> tuple[torch.Tensor, torch.Tensor]:
    """How often each item was logged in each state, and its reward, by number of item and state; 0 for padding."""
    generator = torch.Generator().manual_seed(3)
    count_SV, reward_SV = torch.zeros(23, 21, dtype=torch.int64), torch.zeros(23, 21)
    for state in (21, 22):
        p_V = torch.rand(ITEMS, generator=generator).pow(2) + 0.05
        count_SV[state, 1:] = (LOGGED * p_V / p_V.sum()).round().long()
        reward_SV[state, 1:] = 4 * torch.rand(ITEMS, generator=generator)
    return count_SV, reward_SV


COUNT_SV, REWARD_SV = world()
REFERENCE_SV = (COUNT_SV / COUNT_SV.sum(1, keepdim=True).clamp(min=1)).log()
OPTIMUM_SV = (REFERENCE_SV + REWARD_SV / TEMPERATURE).softmax(1)[21:]
STATISTICS = Statistics(positions=2 * LOGGED, reward_min=0.0, reward_max=4.0, reward_mean=2.0)


def choices(state_B: torch.Tensor, item_B: torch.Tensor, first: int = 0) -> Batch:
    """Users who choose one item each in a state."""
    item_BT = torch.stack([state_B, item_B], 1)
    reward_BT = torch.stack([torch.zeros(len(state_B)), REWARD_SV[state_B, item_B]], 1)
    supervised_BT = torch.tensor([[False, True]]).repeat(len(state_B), 1)
    example_B = torch.arange(first, first + len(state_B))
    return Batch(item_BT, reward_BT, torch.zeros_like(item_BT), supervised_BT, torch.full_like(state_B, 2), example_B)


def distance(policy: TabularPolicy) -> float:
    """The larger total variation of the two states from the closed form."""
    p_SV = policy.logits.detach()[21:].softmax(1)
    return float((p_SV - OPTIMUM_SV).abs().sum(1).max() / 2)


def descend(policy, algorithm, batches, passes, rate):
    """Adam with a rate that falls to 0: what is left of the draws' noise is averaged out."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    for step, make in enumerate(batches):
        policy.step, batch = step, make()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / len(batches))
        for _ in range(passes):
            loss = algorithm.loss(policy, batch, STATISTICS)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()


def fresh(value: bool = False) -> TabularPolicy:
    return TabularPolicy(REFERENCE_SV.nan_to_num(neginf=-30), value)


def online(algorithm, steps, rate, users=1024):
    """The policy that ends a run of ``steps`` batches with the true reward."""
    policy, reference = fresh(value=True), fresh()
    companions = Companions(reference, TrueReward(REWARD_SV))
    state_B = torch.arange(users) % STATES + ITEMS + 1

    def tried():
        return explore(policy, companions, algorithm, choices(state_B, torch.ones_like(state_B)))

    descend(policy, algorithm, [tried] * steps, algorithm.passes, rate)
    return policy


def test_the_optimum_is_another_policy():
    """Else agreement would say nothing."""
    assert distance(fresh()) > 0.25


def test_exp_rsft_on_a_log_ends_at_the_closed_form():
    state, item = COUNT_SV.nonzero(as_tuple=True)
    count = COUNT_SV[state, item]
    log = choices(state.repeat_interleave(count), item.repeat_interleave(count))
    policy = fresh()
    descend(policy, ExpRSFT(temperature=TEMPERATURE), [lambda: log] * 150, 1, 0.1)
    assert distance(policy) < 0.002


@pytest.mark.parametrize("baseline", ["value", "group"])
def test_ppo_ends_at_the_closed_form(baseline):
    assert distance(online(PPO(temperature=TEMPERATURE, baseline=baseline), 100, 0.05)) < 0.02


@pytest.mark.parametrize("algorithm", [PPO(temperature=TEMPERATURE), DPO(temperature=TEMPERATURE, beta=0.5)])
def test_a_history_that_the_policy_would_repeat_does_not_change_the_temperature(algorithm):
    """Three of the likeliest items are in the history: among the others the end is the closed form all the same."""
    seen = REFERENCE_SV[21:].sum(0).topk(3).indices
    assert REFERENCE_SV[21:, seen].exp().sum(1).min() > 0.2
    policy, companions = fresh(value=True), Companions(fresh(), TrueReward(REWARD_SV))
    state_B = torch.arange(1024) % STATES + ITEMS + 1

    def tried():
        batch = choices(state_B, torch.ones_like(state_B))
        between_BT = seen.expand(len(state_B), -1)
        item_BT = torch.cat([state_B[:, None], between_BT, batch.item_BT], 1)
        batch = replace(batch, item_BT=item_BT, supervised_BT=pad(batch.supervised_BT, (4, 0)))
        return explore(policy, companions, algorithm, batch)

    descend(policy, algorithm, [tried] * 200, algorithm.passes, 0.05)
    shown = torch.ones(ITEMS + 1, dtype=torch.bool)
    shown[seen] = False
    found_SV, optimum_SV = policy.logits.detach()[21:, shown].softmax(1), OPTIMUM_SV[:, shown]
    optimum_SV = optimum_SV / optimum_SV.sum(1, keepdim=True)
    assert (found_SV - optimum_SV).abs().sum(1).max() / 2 < 0.02


def test_dpo_ends_at_the_closed_form():
    assert distance(online(DPO(temperature=TEMPERATURE, beta=0.5), 300, 0.05)) < 0.02


@pytest.mark.parametrize(
    "algorithm",
    [
        BC(),
        RSFT(),
        ExpRSFT(normalize="batch"),
        TopRated(),
        DPO(),
        DPO(labels="hard", draws=4),
        PPO(),
        PPO(baseline="group"),
    ],
    ids=lambda each: "-".join(str(value) for value in vars(each).values() if isinstance(value, str)),
)
def test_gradients_agree_with_finite_differences(algorithm):
    """In float64, of every logit and value, where a policy has left the one that drew: some ratios are clipped."""
    state_B, item_B = torch.tensor([21, 22, 21, 22]), torch.tensor([1, 2, 3, 4])
    batch, old, reference = choices(state_B, item_B), fresh(value=True).double(), fresh().double()
    statistics = replace(STATISTICS, threshold=1.0)
    if isinstance(algorithm, Online):
        batch = explore(old, Companions(reference, TrueReward(REWARD_SV.double())), algorithm, batch)

    policy = TabularPolicy(old.logits.detach() + torch.linspace(-20, 20, 21).sin().double() / 3, value=True)
    policy.value.data += 1.5

    def mean():
        loss = algorithm.loss(policy, batch, statistics)
        if isinstance(algorithm, PPO):
            assert 0 < loss.metrics["clip_fraction"] < len(batch.reward_PK)
        return loss.total / loss.count

    mean().backward()
    for parameter in (policy.logits, policy.value):
        if parameter.grad is None:  # a value that an objective does not read
            continue
        difference = torch.zeros_like(parameter)
        for place in torch.ones_like(parameter)[21:].nonzero():
            at = (place[0] + 21, *place[1:])
            kept = parameter.data[at].clone()
            ends = []
            for step in (1e-5, -1e-5):
                parameter.data[at] = kept + step
                ends.append(mean().item())
            parameter.data[at] = kept
            difference[at] = (ends[0] - ends[1]) / 2e-5
        assert difference.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, difference, rtol=1e-6, atol=1e-8)
