"""Two real gloo processes that run functions sent to them; started once a session, because importing torch is slow."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _serve(rank: int, world: int, address: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    while (message := pipe.recv()) is not None:
        function, arguments = message
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """``world`` processes in one gloo group; ``ranks(function, *arguments)`` returns each rank's result.

    A failure leaves the ranks out of step (one may wait in a collective for ever), so the processes end with it and
    the next call starts new ones.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._pipes: list[Any] = []
        self._processes: list[Any] = []

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        context = mp.get_context("spawn")
        for rank in range(self.world):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, address, theirs), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < self.world:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready: list[Any] = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            for pipe in ready:
                rank = self._pipes.index(pipe)
                done, answers[rank] = pipe.recv()
                if not done:
                    self.stop(now=True)
                    raise AssertionError(f"rank {rank}:\n{answers[rank]}")
            if not ready:
                self.stop(now=True)
                raise AssertionError(f"only ranks {sorted(answers)} answered within {timeout} s")
        return [answers[rank] for rank in range(self.world)]

    def stop(self, now: bool = False) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if now:
                process.kill()
            else:
                pipe.send(None)
        for process in self._processes:
            process.join(timeout=20)
            process.kill()
        self._pipes, self._processes = [], []
