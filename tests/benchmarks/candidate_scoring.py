"""Scoring 10 items in each of 10,000 contexts against one forward pass over the same contexts.

``python tests/benchmarks/candidate_scoring.py`` makes histories with the lengths of a data set like ml-1m (log-normal,
mean 165, cut at 200), asks a reward model about them by turns with the bare forward pass of its trunk, and prints the
ratio for 10 positions of each of 1,000 users (the last ones, as held out) and for the last position of 10,000 users.
Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import alternate, ratio

from retilt.models.backbone import Model
from retilt.models.catalog import ReplicatedTable
from retilt.models.heads import RewardHead, Unit
from retilt.models.hstu import HSTU
from retilt.models.policy import CataloguePolicy, Network
from retilt.models.reward import FrozenRewardModel
from retilt.models.sasrec import SASRec
from retilt.types import MICROSECONDS, Batch

ITEMS, BATCH = 3706, 128


def contexts(users: int, positions: int, longest: int) -> Iterator[Batch]:
    """Batches of users sorted by length, whose last ``positions`` events are targets."""
    generator = torch.Generator().manual_seed(0)
    length_U = torch.empty(users).log_normal_(4.5, 1.0, generator=generator).clamp(20, longest + 1).long().sort().values
    for length_B in length_U.split(BATCH):
        place_T = torch.arange(int(length_B.max()))
        valid_BT = place_T < length_B[:, None]
        shape = valid_BT.shape
        step_BT = torch.randint(0, 3600, shape, generator=generator) * valid_BT
        yield Batch(
            item_BT=torch.randint(1, ITEMS + 1, shape, generator=generator) * valid_BT,
            reward_BT=torch.randint(1, 6, shape, generator=generator).float() * valid_BT,
            time_BT=step_BT.cumsum(1) * MICROSECONDS,
            supervised_BT=valid_BT & (place_T >= length_B[:, None] - positions),
            length_B=length_B,
            example_B=torch.arange(len(length_B)),
        )


@torch.no_grad()
def forward(policy: CataloguePolicy, batches: list[Batch]) -> None:
    """The trunk over the histories."""
    for batch in batches:
        item_BT = batch.item_BT[:, :-1]
        x_BTD = policy.table(item_BT.reshape(-1)).view(*item_BT.shape, -1)  # type: ignore[operator]
        policy.network.backbone(x_BTD, batch.time_BT, item_BT != 0, None)


def score(model: FrozenRewardModel, batches: list[Batch], candidates: int) -> None:
    """r̂ of the same number of random items in each context."""
    generator = torch.Generator().manual_seed(1)
    for batch in batches:
        positions = int(batch.supervised_BT.sum())
        model.score(batch, torch.randint(1, ITEMS + 1, (positions, candidates), generator=generator))


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    models: dict[str, Model] = {"hstu": HSTU(), "sasrec": SASRec()}
    result: dict[str, object] = vars(flags)
    for name, settings in models.items():
        table = ReplicatedTable(ITEMS, settings.width, 0, "row_wise_adagrad", 0.05)
        head = RewardHead(settings.width, Unit(3.6, 1.1), ITEMS)
        network = Network(settings.build(0.0), table, head=head)
        policy = CataloguePolicy(settings, network, table, torch.ones(ITEMS + 1, dtype=torch.bool))
        for positions in (10, 1):
            batches = list(contexts(flags.contexts // positions, positions, settings.max_length))
            ways = {
                "forward": partial(forward, policy, batches),
                "score": partial(score, FrozenRewardModel(policy), batches, flags.candidates),
            }
            found = alternate(ways, flags.pairs)
            result[f"{name}, {positions} positions a user"] = ratio(found["score"], found["forward"])
    for what, value in result.items():
        print(f"{what:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
