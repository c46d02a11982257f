"""Our side of against_rectools.py: trains one epoch per line of input, as the training loop does on one rank.

``epoch`` answers with the seconds of the epoch's training alone: reading, batches, forward, backward, optimizer.
``events`` writes the events of an epoch, user by user, to the file that RecTools' side reads.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from retilt.algorithms.bc import BC
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import train_batches
from retilt.models.hstu import HSTU
from retilt.training import parallel
from retilt.training.assemble import Blueprint, assemble
from retilt.training.fit import fit_statistics
from retilt.training.step import take_step
from retilt.types import Batch

PROTOCOL: Final = "refit"


class Side:
    """A policy with a replicated table under Adam, and where its training stands."""

    def __init__(self, settings: dict[str, Any]) -> None:
        parallel.use_threads(settings["threads"])
        width, heads = settings["width"], settings["heads"]
        model = HSTU(
            max_length=settings["max_length"], width=width, blocks=settings["blocks"], heads=heads,
            head_width=width // heads, temperature=settings["temperature"],
        )  # fmt: skip
        self.model = model
        self.dataset = Dataset.open(settings["dataset"])
        self.plan = Plan.of(self.dataset, settings["batch_users"], 0)
        self.algorithm = BC()
        self.statistics, _ = fit_statistics(self.algorithm, self.dataset, PROTOCOL, model.max_length)
        rate = settings["learning_rate"]
        blueprint = Blueprint(
            model=model, items=self.dataset.items, placement="replicated", table_optimizer="adam",
            learning_rate=rate, table_learning_rate=rate, dropout=settings["dropout"], seed=0,
        )  # fmt: skip
        self.policy, self.dense = assemble(blueprint, self.dataset.active(), torch.device("cpu"))
        self.epochs, self.step = 0, 0

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, read from the data set's files."""
        return iter(train_batches(self.dataset, self.plan, Cursor(epoch, 0), PROTOCOL, self.model.max_length, 0, 1))

    def epoch(self) -> dict[str, float]:
        """Train one epoch; its seconds, processor seconds, mean loss and positions."""
        total = count = 0.0
        started, busy = time.perf_counter(), time.process_time()
        for batch in self.batches(self.epochs):
            result = take_step(
                self.policy, self.dense, self.algorithm, batch, self.statistics, self.step, {}, lambda loss: False
            )
            self.step += 1
            total, count = total + result.loss * result.count, count + result.count
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
        self.epochs += 1
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": total / count, "positions": int(count)}

    def events(self, path: str) -> dict[str, float]:
        """Write user, item and time (µs) of every event of an epoch to ``path`` (npz); their number."""
        users, items, times = [], [], []
        for batch in self.batches(0):
            valid_BT = torch.arange(batch.item_BT.shape[1]) < batch.length_B[:, None]
            users.append(batch.example_B.repeat_interleave(batch.length_B))
            items.append(batch.item_BT[valid_BT])
            times.append(batch.time_BT[valid_BT])
        user, item, moment = (torch.cat(parts).numpy() for parts in (users, items, times))
        np.savez(path, user=user, item=item, time=moment)
        return {"events": len(item)}


def main() -> None:
    settings = json.loads(sys.argv[1])
    side = Side(settings)
    for line in sys.stdin:
        answer = side.epoch() if line.strip() == "epoch" else side.events(settings["events"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
