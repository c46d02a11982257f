"""What dpo and ppo gain in a large simulated world if the reward model is the truth, beside the closed form's gain.

    python tests/benchmarks/true_reward.py [items=4000] [steps=1000]

If an objective collapses on real data although it gains nearly all that there is to gain here, the reward model is to
blame and not its arithmetic. States are users of data/world.py after some choices of their own; the policy starts from
π_β and is held to it, so the optimum is π* ∝ π_β · exp(r*/λ). It is

    π(a | s) ∝ π_β(a | s) · exp(h(s) · e_a),   h a network of the user's state, e_a a vector for each item

which can come near to the optimum (r* is a sigmoid of a sum of products of width 8, so not reach it), generalises over
states as a recommender must, and learns from few draws a state as one does. Draws, losses and metrics are the
repository's. Values are exact, over the whole catalogue, in states that training has not seen. For each objective:

    gain       (V(π) − V(π_β)) / (V(π*) − V(π_β)), V the mean true reward; over 1 where it pays with more divergence
    objective  the same of J = V − λ · KL(π ‖ π_β), which nothing but π* has at 1
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.algorithms.tabular import TabularDistribution

from retilt.algorithms.dpo import DPO
from retilt.algorithms.ppo import PPO
from retilt.data.draws import Draws
from retilt.data.world import Parameters, State, World
from retilt.models import counter
from retilt.training.explore import explore
from retilt.types import Batch, Companions, Statistics

TEMPERATURE, CHOICES, WIDTH, HELD_OUT = 0.5, 10, 32, 256
STATISTICS = Statistics(positions=1, reward_min=0.0, reward_max=4.0, reward_mean=2.0)


class States:
    """Users of a world after some choices, with π_β and r* over its catalogue."""

    def __init__(self, items: int, users: int, seed: int = 0) -> None:
        self.world = World(Parameters(items=items, exponent=1.0, offset=10.0, quality_mean=0.0), seed)
        self.state = self.world.start(np.arange(users))
        draws = Draws(seed, 99)
        for _ in range(CHOICES):
            found = self.world.behaviour(self.state)
            chosen = found.sample(np.arange(users), draws.uniform(users), draws.uniform(users))
            self.state = self.world.advance(self.state, chosen)
        known = np.concatenate([self.state.taste_BD, self.state.bias_B[:, None], self.state.share_BC], 1)
        self.feature_BF = torch.from_numpy(known).float()

    def of(self, user_P: Tensor) -> State:
        """The states of some users, in that order."""
        return State(*(each[user_P.numpy()] for each in vars(self.state).values()))

    def log_behaviour(self, user_P: Tensor) -> Tensor:
        """log π_β over items 0 … V, (P, V + 1); item 0 is padding."""
        found = self.world.behaviour(self.of(user_P)).log_prob_tile(0, self.world.parameters.items)
        return nn.functional.pad(torch.from_numpy(found).float(), (1, 0), value=-60.0)

    def reward(self, user_P: Tensor) -> Tensor:
        """r* over the same items."""
        found = self.world.reward_tile(self.of(user_P), 0, self.world.parameters.items)
        return nn.functional.pad(torch.from_numpy(found).float(), (1, 0))

    def score(self, batch: Batch, item_PK: Tensor) -> Tensor:
        """types.RewardModel, without error."""
        return self.reward(batch.target_example_P).gather(1, item_PK)

    def batch(self, user_B: Tensor) -> Batch:
        """One position for each user; the histories are in the states, what begins them is no item of the catalogue."""
        item_BT = torch.stack([torch.full_like(user_B, self.world.parameters.items + 1), torch.ones_like(user_B)], 1)
        supervised_BT = torch.tensor([[False, True]]).repeat(len(user_B), 1)
        return Batch(item_BT, item_BT.float(), item_BT, supervised_BT, torch.full_like(user_B, 2), user_B)


class Tilted(nn.Module):
    """The module's policy; at first it is π_β."""

    def __init__(self, states: States, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.states, self.step = states, 0
        features = states.feature_BF.shape[1]
        self.net = nn.Sequential(nn.Linear(features, 64), nn.SiLU(), nn.Linear(64, WIDTH))
        self.item_VD = nn.Parameter(torch.zeros(states.world.parameters.items + 1, WIDTH))
        self.value = nn.Sequential(nn.Linear(features, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, batch: Batch) -> TabularDistribution:
        user_P = batch.target_example_P
        feature_PF = self.states.feature_BF[user_P]
        # The first number of h is 1: an item's own term.
        hidden_PD = torch.cat([torch.ones(len(user_P), 1), self.net(feature_PF)[:, 1:]], 1)
        logits_PV = self.states.log_behaviour(user_P) + hidden_PD @ self.item_VD.T
        value_P = STATISTICS.reward_mean + self.value(feature_PF).squeeze(1)
        return TabularDistribution(logits_PV.log_softmax(1), value_P)

    @torch.no_grad()
    def exact(self, batch: Batch) -> TabularDistribution:
        found: TabularDistribution = self(batch)
        return found

    def keys(self, batch: Batch) -> Tensor:
        return counter.keys(batch.example_B, 2, 0, self.step)[batch.supervised_BT]


@dataclass(frozen=True)
class Worth:
    """Means over the held-out states."""

    value: float
    kl: float

    @classmethod
    def of(cls, states: States, log_prob_PV: Tensor, user_P: Tensor) -> Worth:
        p_PV = log_prob_PV.double().exp()
        ratio_PV = log_prob_PV.double() - states.log_behaviour(user_P).double()
        value, kl = (p_PV * states.reward(user_P)).sum(1), (p_PV * ratio_PV)[:, 1:].sum(1)
        return cls(value.mean().item(), kl.mean().item())

    @property
    def objective(self) -> float:
        """J of eq. 3."""
        return self.value - TEMPERATURE * self.kl


def trained(states: States, algorithm: Any, steps: int, users: int, rate: float, batch_users: int = 128) -> Tilted:
    """A policy after ``steps`` batches of users 0 … ``users`` − 1, under Adam with a rate that falls to 0."""
    policy, generator = Tilted(states), torch.Generator().manual_seed(0)
    companions: Any = Companions(Tilted(states), states)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    for step in range(steps):
        policy.step = step
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        user_B = torch.randint(users, (batch_users,), generator=generator)
        explored = explore(policy, companions, algorithm, states.batch(user_B))  # type: ignore[arg-type]
        for _ in range(algorithm.passes):
            loss = algorithm.loss(policy, explored, STATISTICS)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
    return policy


def gains(states: States, policy: Tilted, user_P: Tensor) -> dict[str, float]:
    """What a policy gains, relative to the closed form, in the states of these users."""
    log_behaviour_PV = states.log_behaviour(user_P)
    closed_PV = (log_behaviour_PV + states.reward(user_P) / TEMPERATURE).log_softmax(1)
    found_PV = policy.exact(states.batch(user_P)).log_prob_PV
    before, best, found = (Worth.of(states, each, user_P) for each in (log_behaviour_PV, closed_PV, found_PV))
    return {
        "gain": (found.value - before.value) / (best.value - before.value),
        "objective": (found.objective - before.objective) / (best.objective - before.objective),
        "kl": found.kl,
        "kl_closed_form": best.kl,
        "value_before": before.value,
        "value": found.value,
        "value_closed_form": best.value,
    }


SETTINGS: dict[str, tuple[Any, float]] = {
    "ppo": (PPO(temperature=TEMPERATURE), 0.01),
    "ppo, group": (PPO(temperature=TEMPERATURE, baseline="group"), 0.01),
    "dpo": (DPO(temperature=TEMPERATURE), 0.01),
}


def main() -> None:
    """Print a line for each objective, and all of them as JSON."""
    values = {"items": 4000, "steps": 1000, **{k: int(v) for k, v in (each.split("=") for each in sys.argv[1:])}}
    states, results = States(values["items"], 4096 + HELD_OUT), {}
    for name, (algorithm, rate) in SETTINGS.items():
        began = time.perf_counter()
        policy = trained(states, algorithm, values["steps"], 4096, rate)
        found = gains(states, policy, torch.arange(4096, 4096 + HELD_OUT))
        results[name] = {**found, "seconds": time.perf_counter() - began}
        print(f"{name:12} " + "  ".join(f"{key} {value:.3f}" for key, value in results[name].items()), flush=True)
    print(json.dumps({"temperature": TEMPERATURE, **values, "results": results}))


if __name__ == "__main__":
    main()
