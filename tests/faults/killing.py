"""Runs the training loop in real gloo processes and kills them at chosen points, again and again, until it is done.

The processes are forked from a server that has torch and TorchRec loaded, so that a restart costs a tenth of a second
and not five. Every process notes which examples each of its steps has trained on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

Point = Literal["step", "stepped", "file", "filed", "published", "delete"]
"""Before and after a step; before and after a file appears under its name; after one of a published policy, or the
result, does; before a file or a folder is deleted (manifests are deleted before their folders)."""


@dataclass(frozen=True)
class Kill:
    """Where a process ends itself with SIGKILL: at its ``number``-th passing of ``point`` (steps: at that step)."""

    point: Point
    number: int
    rank: int | None = None
    """None: the first rank that gets there takes all with it."""


@dataclass
class Attempt:
    """What one group of processes did."""

    world: int
    killed: bool
    steps: dict[int, list[int]] = field(default_factory=dict)
    """Examples of each step that was taken whole by all ranks, by rank and then in their order."""
    notes: list[str] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    """time.monotonic at the end of each step on rank 0."""


class _Reporter:
    def __init__(self, lines: Any) -> None:
        self._lines = lines

    def progress(self, update: Mapping[str, Any]) -> None:
        if "note" in update:
            self._lines.write(json.dumps({"note": update["note"]}) + "\n")

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(kill: Kill, rank: int) -> None:
    """Wrap the points in the code under test; the wrapped code itself is unchanged."""
    from retilt import storage

    if kill.rank is not None and kill.rank != rank:
        return
    passed, replace, delete = [0], os.replace, storage.delete

    def here(point: Point) -> None:
        if kill.point == point:
            passed[0] += 1
            if passed[0] == kill.number:
                _die()

    def replaced(*arguments: Any) -> None:
        here("file")
        replace(*arguments)
        here("filed")
        if "/policy/" in str(arguments[1]) or str(arguments[1]).endswith("/result.json"):
            here("published")

    def deleted(uri: str) -> None:
        here("delete")
        delete(uri)

    os.replace = replaced  # type: ignore[assignment]
    storage.delete = deleted


def _work(
    rank: int, world: int, address: str, task: dict[str, Any], folder: str, kill: Kill | None, prepare: Any
) -> None:
    import torch
    import torch.distributed as dist

    from retilt.training import loop
    from retilt.training.step import take_step

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    if kill:
        _arm(kill, rank)
    if prepare:
        prepare(rank)
    with Path(folder, f"{rank}.jsonl").open("w", buffering=1) as lines:

        def watched(policy: Any, dense: Any, algorithm: Any, batch: Any, statistics: Any, step: int, *more: Any) -> Any:
            point = kill.point if kill and kill.rank in (None, rank) and kill.number == step else None
            if point == "step":
                _die()
            result = take_step(policy, dense, algorithm, batch, statistics, step, *more)
            lines.write(json.dumps({"step": step, "examples": batch.example_B.tolist(), "at": time.monotonic()}) + "\n")
            if point == "stepped":
                _die()
            return result

        with patch("retilt.training.loop.take_step", watched):
            loop.train(task, _Reporter(lines))
    dist.barrier()
    dist.destroy_process_group()


def context() -> Any:
    """The fork server with everything loaded."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.faults.killing", "retilt.training.loop", "torchrec.distributed"])
    return found


def attempt(
    task: dict[str, Any], world: int, folder: Path, kill: Kill | None, prepare: Callable[[int], None] | None = None
) -> Attempt:
    """One group of processes, until all are done or one has ended; then the others are killed, as Ray does it."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    make = context().Process
    group = [make(target=_work, args=(r, world, address, task, str(folder), kill, prepare)) for r in range(world)]
    for process in group:
        process.start()
    left = list(group)
    while left:
        ready = wait([process.sentinel for process in left], timeout=120)
        assert ready, "the processes neither end nor go on"
        left = [process for process in left if process.sentinel not in ready]
        if any(process.exitcode for process in group):
            break
    for process in left:
        process.kill()
    for process in group:
        process.join()
    return _read(folder, world, killed=any(process.exitcode for process in group))


def _read(folder: Path, world: int, killed: bool) -> Attempt:
    found = Attempt(world, killed)
    parts: list[dict[int, list[int]]] = []
    for rank in range(world):
        path = folder / f"{rank}.jsonl"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        )
        parts.append({line["step"]: line["examples"] for line in lines if "step" in line})
        if rank == 0:
            found.notes = [line["note"] for line in lines if "note" in line]
            found.seconds = {line["step"]: line["at"] for line in lines if "step" in line}
    for step in set(parts[0]).intersection(*parts):
        found.steps[step] = [example for part in parts for example in part[step]]
    return found


def run(task: dict[str, Any], worlds: Sequence[int], folder: Path, kills: Sequence[Kill]) -> list[Attempt]:
    """Attempt after attempt, attempt i under ``kills[i]`` (those after the last are left alone), until one ends well.

    ``worlds`` are the numbers of processes of the attempts, the last of them for all that follow.
    """
    from retilt.config import TrainConfig
    from retilt.training.run import check_output, plan_run

    attempts: list[Attempt] = []
    while not attempts or attempts[-1].killed:
        number = len(attempts)
        assert number <= len(kills), "an attempt that nobody killed has failed"
        kill = kills[number] if number < len(kills) else None
        check_output(plan_run(TrainConfig.model_validate(task["config"])))  # as the same command again does it
        attempts.append(attempt(task, worlds[min(number, len(worlds) - 1)], folder / str(number), kill))
    return attempts


def committed_steps(attempts: Sequence[Attempt]) -> dict[int, list[int]]:
    """Examples of every step that made it into the result: of each attempt, those before the next one's first."""
    found: dict[int, list[int]] = {}
    for each in attempts:
        if each.steps:
            first = min(each.steps)
            found = {step: examples for step, examples in found.items() if step < first} | each.steps
    return found
