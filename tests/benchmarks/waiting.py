"""How long training waits for data, and how much of a batch is padding: one epoch of ml-1m as the presets have it.

``python tests/benchmarks/waiting.py --dataset URI`` takes the data set that ``jobs/prepare.py --config
jobs/configs/ml-1m/prepare.yaml dataset=URI`` wrote, trains one epoch in this process and prints, as its last line, one
JSON object: the share of the epoch that the loop waited for the next batch, and that of positions that are padding.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from retilt import ranks
from retilt.algorithms.bc import BC
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import train_batches
from retilt.models.hstu import HSTU
from retilt.training.assemble import Blueprint, assemble
from retilt.training.fit import fit_statistics
from retilt.training.step import take_step


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--users", type=int, default=128, help="of a batch")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    ranks.single()
    dataset, model = Dataset.open(flags.dataset), HSTU()
    statistics, _ = fit_statistics(BC(), dataset, "refit", model.max_length)
    blueprint = Blueprint(model, dataset.items, "replicated", "adam", 1e-3, 0.05, 0.2, 0)
    policy, dense = assemble(blueprint, dataset.active(), torch.device("cpu"))
    plan = Plan.of(dataset, flags.users, 0)
    batches = train_batches(dataset, plan, Cursor(0, 0), "refit", model.max_length, 0, 1)
    waited, padding, positions, steps = 0.0, 0, 0, 0
    began = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        if steps:  # the first batch is read while nothing can be done
            waited += time.perf_counter() - asked
        padding += int((batch.item_BT[:, :-1] == 0).sum())
        positions += batch.item_BT[:, :-1].numel()
        take_step(policy, dense, BC(), batch, statistics, steps, {}, lambda _: False)
        steps += 1
    seconds = time.perf_counter() - began
    found = {**vars(flags), "steps": steps, "seconds": seconds, "waiting": waited / seconds}
    found["padding"] = padding / positions
    for name, value in found.items():
        print(f"{name:10} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
