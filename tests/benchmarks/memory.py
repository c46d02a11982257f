"""Peak memory of this process and all below it, by name, while a block runs: for benchmarks, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY = 0.5
"""Seconds between two looks; the kernel keeps the peak, only a process that lives shorter is missed."""


def below(root: int) -> list[int]:
    """``root`` and all processes that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            # The name is in parentheses and may hold anything; the parent is the second field after it.
            parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


@contextlib.contextmanager
def peaks() -> Iterator[dict[int, tuple[str, int]]]:
    """Process → (name, most MB it ever had, shared memory included) of all that lived while the block ran."""
    seen: dict[int, tuple[str, int]] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            for process in below(os.getpid()):
                with contextlib.suppress(OSError, KeyError, IndexError):
                    status = dict(
                        line.split(":", 1) for line in Path("/proc", str(process), "status").read_text().splitlines()
                    )
                    command = Path("/proc", str(process), "cmdline").read_text().replace("\0", " ").split()
                    name = seen.get(process, ("", 0))[0] if "ray::IDLE" in command[0] else " ".join(command)[:60]
                    seen[process] = (name or command[0], int(status["VmHWM"].split()[0]) >> 10)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
