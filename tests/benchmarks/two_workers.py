"""How much faster two workers train than one, one thread each: sampled softmax, a million items, no Ray.

``python tests/benchmarks/two_workers.py`` lets one process and a group of two take the same global batches by turns and
prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import stepping
from tests.benchmarks.measuring import ratio
from tests.spawning import Ranks


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--users", type=int, default=128)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--negatives", type=int, default=4096)
    parser.add_argument("--softmax", choices=["sampled", "exact"], default="sampled")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=7)
    flags = parser.parse_args()
    sizes = {name: value for name, value in vars(flags).items() if name in stepping.SIZES}
    groups = {1: Ranks(1), 2: Ranks(2)}
    times: dict[int, list[float]] = {1: [], 2: []}
    for group in groups.values():
        group(stepping.prepare, sizes, timeout=600)
    for pair in range(flags.pairs + 1):
        for workers, group in groups.items():
            found = group(stepping.take, flags.steps, timeout=600)
            if pair:
                times[workers].append(statistics.median(part["seconds"] for part in found))
    for group in groups.values():
        group.stop()
    result: dict[str, object] = {**vars(flags), "one_over_two": ratio(times[1], times[2])}
    for name, value in result.items():
        print(f"{name:16} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
