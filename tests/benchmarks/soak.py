"""Trains for an hour in two gloo processes and fits lines through memory and open files: does anything leak?

``python tests/benchmarks/soak.py --minutes 60 --output FILE`` prints progress, then a table and, as its last line, one
JSON object. A checkpoint every 50 steps, a validation every epoch: everything that a long run repeats is repeated
thousands of times. The first sixth is left out of the fit: caches fill then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.data import small_dataset
from tests.spawning import Ranks

from retilt.config import TrainConfig, build
from retilt.training import loop
from retilt.training.run import plan_run
from retilt.types import Stopped

EVERY = 5.0


class Sampler:
    """A reporter that stops the run after ``seconds`` and samples this process every ``EVERY`` seconds."""

    def __init__(self, seconds: float) -> None:
        self.samples: list[dict[str, float]] = []
        self.step = 0
        self._end = time.monotonic() + seconds
        self._began = time.monotonic()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while time.monotonic() < self._end:
            rows = Path("/proc/self/status").read_text().splitlines()
            memory = next(int(row.split()[1]) for row in rows if row.startswith("VmRSS")) / 1024
            self.samples.append(
                {
                    "seconds": time.monotonic() - self._began,
                    "step": self.step,
                    "rss_mb": memory,
                    "files": len(os.listdir("/proc/self/fd")),
                    "threads": threading.active_count(),
                }
            )
            time.sleep(EVERY)

    def progress(self, update: Mapping[str, Any]) -> None: ...

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        self.step += 1
        return time.monotonic() > self._end


def work(task: dict[str, Any], seconds: float) -> list[dict[str, float]]:
    """One rank's run and its samples."""
    os.nice(19)
    sampler = Sampler(seconds)
    with contextlib.suppress(Stopped):
        loop.train(task, sampler)
    return sampler.samples


def slope(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    """Least squares per hour, and twice its standard error; samples of one process hang together, so it is a floor."""
    later = [each for each in samples if each["seconds"] >= samples[-1]["seconds"] / 6]
    hours, values = np.array([each["seconds"] / 3600 for each in later]), np.array([each[name] for each in later])
    fit, residual = np.polyfit(hours, values, 1), 0.0
    residual = float(np.sqrt(((values - np.polyval(fit, hours)) ** 2).sum() / max(len(later) - 2, 1)))
    spread = residual / max(float(np.sqrt(((hours - hours.mean()) ** 2).sum())), 1e-9)
    return {"per_hour": float(fit[0]), "two_errors": 2 * spread, "first": float(values[0]), "last": float(values[-1])}


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", type=Path, help="where the samples and the result are written as JSON")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        users = small_dataset.sequences(8000, 2000, longest=60)
        data = small_dataset.write(f"{folder}/data", users, 2000, lanes=4, shards=[[250] * 16, [250] * 16])
        values = {
            "dataset": data, "output": f"{folder}/run", "epochs": 1_000_000, "batch_users": 20, "table": "row_wise",
            "model": {"name": "hstu", "max_length": 50, "width": 32, "blocks": 2, "heads": 2, "head_width": 16},
            "algorithm": {"name": "exp_rsft"}, "checkpoint": {"every_steps": 50}, "log_every": 1_000_000,
        }  # fmt: skip
        ranks = Ranks(2)
        task = plan_run(build(TrainConfig, values)).task()
        found = ranks(work, task, flags.minutes * 60, timeout=flags.minutes * 60 + 600)
        ranks.stop()
    result: dict[str, Any] = {"minutes": flags.minutes, "steps": found[0][-1]["step"]}
    for rank, samples in enumerate(found):
        for name in ("rss_mb", "files", "threads"):
            result[f"worker {rank} {name}"] = line = slope(samples, name)
            print(f"worker {rank} {name:8} {line['first']:8.1f} → {line['last']:8.1f}"
                  f"   {line['per_hour']:+.3f} ± {line['two_errors']:.3f} per hour")  # fmt: skip
    if flags.output:
        flags.output.write_text(json.dumps({**result, "samples": found}))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
