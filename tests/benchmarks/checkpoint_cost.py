"""What checkpoints cost: how long training waits for them, and how much longer an epoch with them takes.

``python tests/benchmarks/checkpoint_cost.py`` trains the same epoch by turns with a checkpoint every ``--every`` steps
and with none, in two gloo processes of one thread on a row-wise table, and prints a table and, as its last line, one
JSON object. The processes write, hash and train on the same cores here, so the second figure is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.data import small_dataset
from tests.spawning import Ranks

from retilt.config import TrainConfig, build
from retilt.training import loop
from retilt.training.run import plan_run


class Keeper:
    """Keeps the record of the epoch and counts checkpoints."""

    def __init__(self) -> None:
        self.record: dict[str, float] = {}
        self.committed = 0

    def progress(self, update: Mapping[str, Any]) -> None:
        self.committed += "committed" in update

    def report(self, metrics: Mapping[str, Any]) -> None:
        self.record = dict(metrics)

    def stop_requested(self) -> bool:
        return False


def epoch(task: dict[str, Any]) -> dict[str, float]:
    """One epoch on this rank: its seconds, those that training waited for checkpoints, and their number."""
    keeper = Keeper()
    result = loop.train(task, keeper)
    return {
        "seconds": keeper.record["seconds"],
        "waited": keeper.record["checkpoint_seconds"],
        "steps": result["steps"],
        "checkpoints": keeper.committed,
    }


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--pairs", type=int, default=5)
    flags = parser.parse_args()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        users = small_dataset.sequences(1000, flags.items, longest=60)
        data = small_dataset.write(f"{folder}/data", users, flags.items, lanes=4, shards=[[125] * 4, [125] * 4])
        model = {"name": "hstu", "max_length": 50, "width": 64, "blocks": 2, "heads": 2, "head_width": 32}
        ranks, plain = Ranks(2), {"every_steps": None, "every_seconds": None}
        for pair in range(flags.pairs + 1):
            found = []
            for name, kept in (("with", {"every_steps": flags.every, "every_seconds": None}), ("without", plain)):
                values = {"dataset": data, "output": f"{folder}/{name}-{pair}", "epochs": 1, "batch_users": 20}
                values |= {"model": model, "table": "row_wise", "protocol": "refit", "checkpoint": kept}
                found.append(ranks(epoch, plan_run(build(TrainConfig, values)).task(), timeout=900)[0])
            with_, without = found
            row = {**with_, "wait_share": with_["waited"] / with_["seconds"]}
            row["ratio"] = with_["seconds"] / without["seconds"]
            row["wait_ms"] = 1000 * with_["waited"] / max(with_["checkpoints"], 1)
            row["step_ms"] = 1000 * without["seconds"] / without["steps"]
            print({name: round(value, 4) for name, value in row.items()}, flush=True)
            if pair:  # the first warms up
                rows.append(row)
        ranks.stop()
    result: dict[str, Any] = {"items": flags.items, "every": flags.every, "pairs": flags.pairs}
    for name in ("wait_share", "ratio", "wait_ms", "step_ms", "checkpoints"):
        values_ = sorted(row[name] for row in rows)
        result[name] = {"median": statistics.median(values_), "low": values_[0], "high": values_[-1]}
        print(f"{name:12} {result[name]['median']:.4f} ({values_[0]:.4f} – {values_[-1]:.4f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
