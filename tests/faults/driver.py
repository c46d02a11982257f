"""A job for the tests of this folder: counts steps on N workers, writes each k-th, and continues from the last one.

``python tests/faults/driver.py '{"folder": …, "steps": …, "on_workers": {…}}'``. Every step is an all-reduce; each rank
appends ``step world pid time`` to ``folder/rank-R``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchrec  # noqa: F401 # a worker's start takes as long as with the real work

from retilt import ranks
from retilt.cluster import session
from retilt.cluster.display import say
from retilt.cluster.workers import on_workers
from retilt.command_line import guarded
from retilt.types import Reporter, Stopped


def work(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Count to ``steps``, a checkpoint each ``every``; ``deaf`` ranks hear of no stop; rank 1 fails at ``crash``."""
    folder, rank = Path(arguments["folder"]), ranks.rank()
    saved = folder / "saved"
    step = int(saved.read_text()) if saved.exists() else 0
    with (folder / f"rank-{rank}").open("a") as log:
        while step < arguments["steps"]:
            stop = torch.tensor([float(reporter.stop_requested() and not arguments.get("deaf"))])
            stopping = bool(ranks.sum_(stop))
            step += 1
            if rank == 1 and step == arguments.get("crash"):
                raise ValueError(f"crashed at step {step}")
            log.write(f"{step} {ranks.world()} {os.getpid()} {time.time():.3f}\n")
            log.flush()
            if rank == 0 and (stopping or step % arguments.get("every", 10) == 0):
                saved.with_suffix(".new").write_text(str(step))
                saved.with_suffix(".new").replace(saved)
                reporter.progress({"committed": step})
            if stopping:
                stopped = Stopped(f"stopped at step {step}")
                stopped.on_all_ranks = True
                raise stopped
            time.sleep(arguments.get("seconds", 0.05))
    return {"steps": step, "world": ranks.world()}


def show(update: Mapping[str, Any]) -> None:
    """Notes only."""
    if "note" in update:
        say(str(update["note"]))


def main(arguments: dict[str, Any]) -> int:
    """Run the job on the cluster of RAY_ADDRESS or a local one."""
    workers = arguments["on_workers"].pop("workers", 2)
    workers = workers if isinstance(workers, int) else (workers[0], workers[1])
    with session.connect(cpus=2, dashboard=False):
        result = on_workers(
            work, arguments, workers=workers, threads=1, gpu=False, show=show, **arguments["on_workers"]
        )
    say(f"done {json.dumps(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(json.loads(sys.argv[1]))))
