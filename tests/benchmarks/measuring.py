"""What the benchmarks share: timing by turns, ratios with their spread, peak memory of a process."""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path


def alternate(ways: Mapping[str, Callable[[], object]], pairs: int) -> dict[str, list[float]]:
    """Seconds of each way, ``pairs`` times by turns after a warm-up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(pairs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds = time.perf_counter() - began
            if pair:
                found[name].append(seconds)
    return found


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median, lowest and highest ratio of a pair, and the medians themselves in seconds."""
    each = sorted(a / b for a, b in zip(over, under, strict=True))
    return {
        "median": statistics.median(each),
        "low": each[0],
        "high": each[-1],
        "seconds": statistics.median(over),
        "of_seconds": statistics.median(under),
    }


def memory_mib(kind: str) -> float:
    """``VmRSS`` or ``VmHWM`` (the most so far) of this process, MiB."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextlib.contextmanager
def peak_mib() -> Iterator[list[float]]:
    """Most MiB beyond those held at the beginning; the list's one number is there at the end of the block."""
    Path("/proc/self/clear_refs").write_text("5")
    before, found = memory_mib("VmRSS"), [0.0]
    yield found
    found[0] = memory_mib("VmHWM") - before
