"""Checkpoints written while training goes on: copy, write in the background, agree, commit.

1. ``begin``: every rank copies what it holds and a thread of its own writes it. Training waits for the copy only.
2. Each step carries ``written`` to the other ranks (step.py); once it is true on all of them, ``commit`` gathers the
   hashes, and rank 0's thread flushes the log, writes the manifest and deletes older checkpoints.
3. ``finish`` waits for all of that: before the run ends, before the next copy, before a return to a checkpoint.

All three are collective. What a thread meets (a full disk, a store that is gone) is raised on all ranks alike by the
next of them. Two attempts never share a folder, so a killed one leaves nothing that another could mix up with its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from retilt import artifact, ranks
from retilt.models.policy import CataloguePolicy
from retilt.training import checkpoint

T = TypeVar("T")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Draft:
    """A checkpoint in the making, and what rank 0's thread does around its manifest."""

    place: str
    step: int
    before: Callable[[], None]
    after: Callable[[], None]


class Saver:
    """One rank's part in writing the checkpoints of a run; at most one is under way."""

    def __init__(self, every_seconds: float | None, every_steps: int | None) -> None:
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._snapshot = checkpoint.Snapshot()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="retilt-checkpoint")
        self._writing: Future[list[artifact.FileEntry]] | None = None
        self._committing: Future[None] | None = None
        self._draft: Draft | None = None
        self._begun = time.monotonic()
        self.newest: str | None = None
        """On rank 0: the checkpoint that was committed (or resumed) last."""
        self.waited = 0.0
        """Seconds that training has waited for checkpoints so far."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after ``step`` steps; rank 0 alone says so, and not while one is."""
        if ranks.rank() != 0 or self._writing is not None or (self._committing and not self._committing.done()):
            return False
        if self._every_steps is not None and step % self._every_steps == 0:
            return True
        return self._every_seconds is not None and time.monotonic() - self._begun >= self._every_seconds

    @property
    def written(self) -> bool:
        """Whether this rank's part of the checkpoint under way is written, or could not be."""
        return self._writing is not None and self._writing.done()

    def begin(self, draft: Draft, policy: CataloguePolicy, dense: torch.optim.Adam, state: Mapping[str, Any]) -> None:
        """Copy and start to write. Collective.

        Raises:
            StorageError, InputError: the checkpoint before could not be written.
        """
        self.finish()
        with self._waiting():
            self._snapshot.take(policy, dense)
            self._draft = draft
            mine = dict(state) if ranks.rank() == 0 else None
            self._writing = self._thread.submit(self._snapshot.write, draft.place, mine)
            self._begun = time.monotonic()

    def commit(self) -> None:
        """Let the checkpoint exist that all ranks have written; returns before it does. Collective."""
        with self._waiting():
            writing, self._writing = self._writing, None
            assert writing is not None
            entries = [entry for part in ranks.gather_object(_joined(writing)) for entry in part]
            if ranks.rank() == 0:
                self._committing = self._thread.submit(self._commit, entries)

    def _commit(self, entries: list[artifact.FileEntry]) -> None:
        draft = self._draft
        assert draft is not None
        draft.before()
        checkpoint.commit(draft.place, draft.step, entries)
        self.newest = draft.place
        draft.after()

    def finish(self) -> None:
        """Wait until the checkpoint under way stands. Collective; raises what its writing met."""
        with self._waiting():
            if self._writing is not None:
                self.commit()
            committing, self._committing = self._committing, None
            _joined(committing)

    def run(self, action: Callable[[], None]) -> None:
        """Rank 0's ``action``, however long it takes, while the others wait. Collective; raises what it raises."""
        _joined(self._thread.submit(action) if ranks.rank() == 0 else None)

    def close(self, last: Callable[[], None]) -> None:
        """End the thread when it has done what it is at, and then ``last``; nobody waits for it."""
        self._thread.submit(last)
        self._thread.shutdown(wait=False)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began, before = time.perf_counter(), self.waited
        try:
            yield
        finally:
            self.waited = before + time.perf_counter() - began


def _joined(future: Future[T] | None) -> Any:
    """The future's value, once those of all ranks are done. Collective; raises on all ranks what one of them met.

    The ranks ask each other again and again: in one long wait a slow store would look like a hung worker.
    """
    while True:
        left = future is not None and not future.done()
        if not any(ranks.gather_object(left)):
            return ranks.together(lambda: future.result() if future else None)
        if future is not None and left:
            wait([future], timeout=POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS / 10)
