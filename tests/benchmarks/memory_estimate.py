"""Is the estimate of a worker's memory right? Estimated against measured, for runs of a few steps.

``python tests/benchmarks/memory_estimate.py`` trains each case for an epoch, with checkpoints and a validation, in one
or two fresh gloo processes of one thread that have Ray imported as its workers have, and prints estimate, peak (VmHWM)
and their ratio, which should be between 1 and 1.5; as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import memory_mib
from tests.data import small_dataset
from tests.spawning import Ranks

from retilt.config import TrainConfig, build
from retilt.training import loop, planning
from retilt.training.planning import Sizes
from retilt.training.run import plan_run

EXACT, SAMPLED = {"softmax": "exact"}, {"softmax": "sampled"}
SHARDED, REPLICATED = {"table": "row_wise"}, {"table": "replicated"}
CASES: list[dict[str, Any]] = [
    {"items": 1_000, **SHARDED, **EXACT},
    {"items": 100_000, **REPLICATED, **EXACT},
    {"items": 500_000, **REPLICATED, **SAMPLED},
    {"items": 500_000, **SHARDED, **EXACT},
    {"items": 500_000, **SHARDED, **SAMPLED},
    {"items": 2_000_000, **SHARDED, **EXACT},
    {"items": 2_000_000, **SHARDED, **SAMPLED},
    {"items": 2_000_000, "width": 128, **SHARDED, **SAMPLED},
]
LARGE: list[dict[str, Any]] = [
    {"items": 5_000, **REPLICATED, **EXACT},
    {"items": 5_000, **SHARDED, **SAMPLED},
    {"items": 5_000, "blocks": 8, **SHARDED, **SAMPLED},
    {"items": 5_000, "negatives": "per_position", "negative_count": 256, **SHARDED, **SAMPLED},
    {"items": 5_000, "name": "sasrec", **SHARDED, **SAMPLED},
    {"items": 5_000, "algorithm": "reward_model", **SHARDED, **EXACT},
    {"items": 5_000, "algorithm": "ppo", **SHARDED, **EXACT},
]
"""Cases of large batches, in which not the table but activations take most."""


class Silent:
    """A reporter that keeps nothing."""

    def progress(self, update: Mapping[str, Any]) -> None:
        """Nothing."""

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def stop_requested(self) -> bool:
        return False


def peak(task: dict[str, Any]) -> float:
    """Train on this rank; bytes that its process had at most."""
    import retilt.cluster.rank  # noqa: F401  what a worker of Ray has imported

    loop.train(task, Silent())
    return memory_mib("VmHWM") * 2**20


def companions(values: Mapping[str, Any], output: str, algorithm: str | None) -> dict[str, Any]:
    """What a run of ``algorithm`` starts from, trained for an epoch in a process of its own."""
    if algorithm is None:
        return {}
    found: dict[str, Any] = {}
    for key, name in {"initial": "bc", **({"reward_model": "reward_model"} if algorithm == "ppo" else {})}.items():
        each = {**values, **found, "workers": 1, "algorithm": name, "output": f"{output}/{name}"}
        ranks = Ranks(1)
        ranks(peak, plan_run(build(TrainConfig, each)).task(), timeout=1800)
        ranks.stop()
        found[key] = each["output"]
    return {**found, "algorithm": algorithm}


def compare(folder: Path, case: dict[str, Any], workers: int, large: bool) -> dict[str, Any]:
    """One case on so many workers."""
    length, users, batch = (200, 2_000, 128) if large else (50, 32, 8)
    data = folder / f"{case['items']}-{users}"
    if not data.exists():
        # The last item is withdrawn and no target.
        shortest = 3 if large else length + 5
        sequences = small_dataset.sequences(users, case["items"] - 1, shortest=shortest, longest=2 * length)
        small_dataset.write(str(data), sequences, case["items"], lanes=2, shards=[[users // 4] * 2] * 2)
    model = {"name": case.get("name", "hstu"), "max_length": length, "width": case.get("width", 64)}
    model |= {"blocks": case.get("blocks", 2)}
    if model["name"] == "hstu":
        model["head_width"] = model["width"]
    values: dict[str, Any] = {"dataset": str(data), "workers": workers, "epochs": 1, "batch_users": batch}
    values |= {"model": model, "checkpoint": {"every_steps": 2, "every_seconds": None}}
    values |= {name: case[name] for name in ("softmax", "table", "negatives", "negative_count") if name in case}
    with tempfile.TemporaryDirectory(dir=folder) as output:
        values |= companions(values, output, case.get("algorithm"))
        values["output"] = f"{output}/run"
        planned = plan_run(build(TrainConfig, values))
        parts = planning.memory(Sizes.of(planned.config, planned.dataset))
        ranks = Ranks(workers)
        measured = max(ranks(peak, planned.task(), timeout=1800))
        ranks.stop()
    return {**case, "workers": workers, "estimated": sum(parts.values()), "measured": measured, "parts": parts}


def main() -> None:
    """Run, print."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for cases, large in ((CASES, False), (LARGE, True)):
            for case in cases:
                for workers in (1, 2):
                    each = compare(Path(folder), case, workers, large)
                    each["ratio"] = each["estimated"] / each["measured"]
                    found.append(each)
                    words = " ".join(str(value) for value in case.values())
                    print(
                        f"{words:48} {workers} worker(s): estimated {each['estimated'] / 1e6:6,.0f} MB, "
                        f"measured {each['measured'] / 1e6:6,.0f} MB, ratio {each['ratio']:.2f}",
                        flush=True,
                    )
    ratios = [each["ratio"] for each in found]
    print(f"ratio from {min(ratios):.2f} to {max(ratios):.2f}")
    print(json.dumps({"cases": found, "least": min(ratios), "most": max(ratios)}))


if __name__ == "__main__":
    main()
