"""Ten million items on two workers: the memory of each, and a sampled step against one over ten thousand items.

``python tests/benchmarks/catalogue_memory.py`` starts two groups of two gloo processes, one with the big and one with
the small catalogue, and lets them take steps by turns. Prints a table and, as its last line, one JSON object.
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
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=7)
    flags = parser.parse_args()
    groups, times = {}, dict[str, list[float]](big=[], small=[])
    result: dict[str, object] = vars(flags)
    for name, items in (("big", flags.items), ("small", flags.small)):
        groups[name] = Ranks(flags.workers)
        found = groups[name](stepping.prepare, {"items": items, "width": flags.width}, timeout=600)
        result[f"{name}_mib_before"] = max(part["before"] for part in found)
    peak = 0.0
    for pair in range(flags.pairs + 1):
        for name, group in groups.items():
            found = group(stepping.take, flags.steps, timeout=600)
            if pair:
                times[name].append(statistics.median(part["seconds"] for part in found))
            if name == "big":
                peak = max(peak, *(part["peak"] for part in found))
    for group in groups.values():
        group.stop()
    result["big_over_small_step"] = ratio(times["big"], times["small"])
    result["peak_mib"] = peak
    result["shard_mib"] = flags.items * flags.width * 4 / flags.workers / 2**20
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
