"""Lanes: groups of workers that stay, side by side, and serve one piece of work after the other.

To start a group takes ten seconds or more, as long as a short run, and a reproduction has hundreds of runs. So a lane
is one ``on_workers`` whose work is ``serve``: its ranks take what the driver lays on a desk, until it is closed.
Whatever ends a piece of work on all ranks alike ends that piece only. What leaves the ranks apart (an error of one of
them, a lost node) ends the group: Ray Train restarts it and it takes the same piece again, or the next call starts it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from retilt import ranks
from retilt.cluster.messages import Update, on_this_node
from retilt.cluster.rank import Work
from retilt.cluster.resources import place_workers
from retilt.cluster.workers import on_workers, ray_train_settings
from retilt.training import parallel
from retilt.types import ERRORS, Reporter, RetiltError, Stopped, TrainingError

POLL_SECONDS = 0.1
"""Between two looks at a desk, of a worker without work and of the driver that waits for an outcome."""
IDLE_SECONDS = 10.0
"""How long the first rank looks for work before the others, who wait in a collective, hear that there is none."""

ABANDON_SECONDS = 20.0
"""How long the end of a group is waited for whose work is left where it stands."""

Piece = tuple[int, Work, Mapping[str, Any]]
"""Number, function and arguments of a piece of work."""


class UnstartedError(Exception):
    """A lane's group cannot be started; ``reason`` has nothing to do with any piece of work."""

    def __init__(self, reason: RetiltError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@ray.remote(num_cpus=0)
class Desk:
    """Where the driver lays work for a lane, and the lane what came of it."""

    def __init__(self) -> None:
        self._piece: Piece | None = None
        self._outcomes: dict[int, Any] = {}
        self._given = 0
        self._taken = 0
        self._closed = False

    def give(self, work: Work, arguments: Mapping[str, Any]) -> int:
        """Lay a piece of work there; returns its number."""
        self._given += 1
        self._piece = (self._given, work, arguments)
        return self._given

    def take(self) -> tuple[Piece | None, bool]:
        """The piece that has no outcome yet, so that a group that was restarted gets its own again; and: closed?"""
        self._taken = self._given
        return self._piece, self._closed

    def taken(self) -> int:
        """Number of the last piece that the lane has taken."""
        return self._taken

    def end(self, number: int, outcome: Any) -> None:
        """Keep what came of a piece: ``("result", …)``, or the name and message of an error."""
        if self._piece is not None and self._piece[0] == number:
            self._piece = None
            self._outcomes[number] = outcome

    def outcome(self, number: int) -> Any:
        """What came of a piece, handed out once; None while there is nothing."""
        return self._outcomes.pop(number, None)

    def close(self) -> None:
        """No more work."""
        self._closed = True


@dataclass(frozen=True)
class _Quiet:
    """A lane's reporter: Ray Train hears of no epochs, for which all ranks would wait up to a second."""

    reporter: Reporter

    def progress(self, update: Mapping[str, Any]) -> None:
        self.reporter.progress(update)

    def stop_requested(self) -> bool:
        return self.reporter.stop_requested()

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""


def serve(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """What a lane's ranks run: one piece of work after the other."""
    desk, quiet, served = arguments["desk"], _Quiet(reporter), 0
    while True:
        piece, closed = ranks.broadcast_object(_look(desk) if ranks.rank() == 0 else (None, False))
        if closed:
            return {"served": served}
        if piece is None:
            continue
        number, work, given = piece
        outcome = _outcome(work, given, quiet)
        served += 1
        if ranks.rank() == 0:
            ray.get(desk.end.remote(number, outcome))
        gc.collect()  # a model and its optimizer refer to each other


def _look(desk: Any) -> tuple[Piece | None, bool]:
    """A piece, or that the desk is closed, or after a while neither."""
    end = time.monotonic() + IDLE_SECONDS
    while True:
        piece, closed = ray.get(desk.take.remote())
        if piece is not None or closed or time.monotonic() > end:
            return piece, closed
        time.sleep(POLL_SECONDS)


def _outcome(work: Work, arguments: Mapping[str, Any], reporter: Reporter) -> tuple[str, Any]:
    try:
        return "result", work(arguments, reporter)
    except Stopped:
        raise
    except RetiltError as problem:
        if ranks.world() > 1 and not problem.on_all_ranks:
            raise  # the others wait in a collective; only the end of the group frees them
        return type(problem).__name__, str(problem)


class Lane:
    """One such group, started by the first call. ``call`` is for one thread of the driver at a time."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """``settings``: what ``on_workers`` is told of the group."""
        self._settings = settings
        self._desk: Any = None
        self._messages: Any = None
        self._thread: threading.Thread | None = None
        self._problem: RetiltError | None = None
        self._stopping = threading.Event()

    def call(self, work: Work, arguments: Mapping[str, Any], *, checkpoints: bool) -> dict[str, Any]:
        """Run ``work`` on the lane's ranks and return rank 0's result.

        ``checkpoints``: it looks at ``stop_requested`` and writes one; other work is left where it stands on ``stop``.

        Raises:
            InputError, StorageError, TrainingError: what the work raised, or why its group ended again and again.
            UnstartedError: the group did not get as far as the work.
            Stopped: after ``stop``.
        """
        if self._stopping.is_set():
            raise Stopped("stopped before this began")
        self._start()
        number = ray.get(self._desk.give.remote(work, dict(arguments)))
        while True:
            alive = self._alive()
            if (outcome := ray.get(self._desk.outcome.remote(number))) is not None:
                break
            if not alive:
                problem = self._problem or TrainingError("a lane ended before its work")
                if ray.get(self._desk.taken.remote()) < number:
                    raise UnstartedError(problem) from problem
                raise problem
            if self._stopping.is_set() and not checkpoints:
                raise Stopped("stopped in the middle")
            time.sleep(POLL_SECONDS)
        name, content = outcome
        if name == "result":
            return dict(content)
        raise ERRORS.get(name, TrainingError)(content)

    def stop(self) -> None:
        """Ask for the end: after a checkpoint where the work can write one. Any thread may."""
        self._stopping.set()
        if self._alive():
            self._messages.stop.remote()

    def close(self) -> None:
        """End the group; nothing may be at work. Does not wait."""
        if self._alive():
            self._desk.close.remote()

    def abandon(self) -> None:
        """End the group, whatever it does; does not wait."""
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is going away, and the group with it
            self.stop()
            self.close()
            if self._alive() and (room := ray.get(self._messages.room.remote(), timeout=ABANDON_SECONDS)) is not None:
                ray.util.remove_placement_group(room)

    def join(self, seconds: float | None = None) -> None:
        """Wait for the group's end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        if self._alive():
            return
        self._desk, self._messages, self._problem = Desk.remote(), on_this_node(), None  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            on_workers(serve, {"desk": self._desk}, messages=self._messages, **self._settings)
        except RetiltError as problem:
            self._problem = problem
        except ray.exceptions.RayError as problem:  # the cluster is going away
            self._problem = TrainingError(" ".join(str(problem).split()))


def stop_all(lanes: Iterable[Lane]) -> None:
    """Ask all of them."""
    for lane in lanes:
        lane.stop()


def most(workers: int, threads: int | None, device: str) -> int:
    """Lanes for which the connected cluster has free CPUs and GPUs, at least one; ``threads`` and ``device`` as given.

    Raises InputError where not even one has room.
    """
    from ray._private.state import available_resources_per_node  # ray's public sum says nothing of nodes

    each = place_workers(workers, threads, gpu=parallel.choose_device(device).type == "cuda")
    nodes: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return max(1, that_fit(nodes.values(), each, workers))


def that_fit(nodes: Iterable[Mapping[str, float]], each: Mapping[str, float], workers: int) -> int:
    """Lanes of ``workers`` for which there is room: a worker needs ``each`` on one node, a lane may lie on several.

    >>> that_fit([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2.0}, workers=1)
    2
    """
    return sum(min(int(node.get(name, 0) // needed) for name, needed in each.items()) for node in nodes) // workers


@contextlib.contextmanager
def lanes(
    number: int,
    *,
    workers: int,
    threads: int | None,
    device: str,
    hang_seconds: int,
    show: Callable[[int, Update], None],
) -> Iterator[list[Lane]]:
    """``number`` lanes of ``workers`` ranks each on the connected cluster; ``show`` gets a lane's number and update.

    After an error in the block what is at work is left where it stands.
    """

    def settings(lane: int) -> dict[str, Any]:
        return {
            "workers": workers, "threads": threads, "gpu": parallel.choose_device(device).type == "cuda",
            "show": lambda update: show(lane, update), "hang_seconds": hang_seconds,
        }  # fmt: skip

    with ray_train_settings(hang_seconds, workers):  # once around all: lanes come and go beside each other
        found = [Lane(settings(lane)) for lane in range(number)]
        try:
            yield found
        except BaseException:
            # A thread that asks Ray for something after the end of the connection ends this process, without a word.
            for lane in found:
                lane.abandon()
            for lane in found:
                lane.join(ABANDON_SECONDS)
            raise
        for lane in found:
            lane.close()
        for lane in found:
            lane.join()
