"""With the truth for a reward model dpo and ppo gain what there is to gain: the benchmark of that name, made small.

A collapse on real data is then the reward model's. 1,000 items; each state's optimum is never seen, only draws are.
"""

from __future__ import annotations

import pytest
import torch
from tests.benchmarks.true_reward import TEMPERATURE, States, gains, trained

from retilt.algorithms.dpo import DPO
from retilt.algorithms.ppo import PPO


@pytest.mark.parametrize("algorithm", [PPO(temperature=TEMPERATURE), DPO(temperature=TEMPERATURE)], ids=["ppo", "dpo"])
def test_nine_tenths_of_the_closed_forms_gain_in_new_states(algorithm):
    states = States(1000, 512 + 128)
    policy = trained(states, algorithm, steps=200, users=512, rate=0.02, batch_users=64)
    found = gains(states, policy, torch.arange(512, 640))
    assert found["gain"] > 0.9
    assert found["objective"] > 0.85
