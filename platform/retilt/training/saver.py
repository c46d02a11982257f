"""Checkpoints written while training goes on: copy, write in the background, agree, commit.

1. ``begin``: every rank copies what it holds and a thread of its own writes it. Training waits for the copy only.
2. Each step carries ``written`` to the other ranks (step.py); once it is true on all of them, ``commit`` gathers the
   hashes, and rank 0's thread writes the manifest, deletes older checkpoints and flushes the log.
3. ``finish`` waits for all of that: before the run ends, before the next copy, before a return to a checkpoint.

All three are collective. What a thread meets (a full disk, a store that is gone) is raised on all ranks alike by the
next of them. Two attempts never share a folder, so a killed one leaves nothing that another could mix up with its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from retilt import artifact, ranks
from retilt.models.policy import CataloguePolicy
from retilt.training import checkpoint


class Saver:
    """One rank's part in writing the checkpoints of a run; at most one is under way."""

    def __init__(self, every_seconds: float | None, every_steps: int | None, fence: Callable[[], None]) -> None:
        """``fence`` runs before each manifest and raises where this run may write no more."""
        self._every_seconds, self._every_steps, self._fence = every_seconds, every_steps, fence
        self._snapshot = checkpoint.Snapshot()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="retilt-checkpoint")
        self._writing: Future[list[artifact.FileEntry]] | None = None
        self._committing: Future[None] | None = None
        self._place, self._step = "", 0
        self._after: Callable[[], None] = lambda: None
        self._begun = time.monotonic()
        self.waited = 0.0
        """Seconds that training has waited for checkpoints so far."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after ``step`` steps. By time only rank 0 says so."""
        if self._writing is not None:
            return False
        if self._every_steps is not None and step % self._every_steps == 0:
            return True
        late = self._every_seconds is not None and time.monotonic() - self._begun >= self._every_seconds
        return late and ranks.rank() == 0

    @property
    def written(self) -> bool:
        """Whether this rank's part of the checkpoint under way is written, or could not be."""
        return self._writing is not None and self._writing.done()

    def begin(
        self,
        place: str,
        policy: CataloguePolicy,
        dense: torch.optim.Adam,
        state: Mapping[str, Any],
        after: Callable[[], None],
    ) -> None:
        """Copy and start to write; ``after`` runs in rank 0's thread when the manifest stands. Collective.

        Raises:
            StorageError, InputError: the checkpoint before could not be written.
        """
        self.finish()
        with self._waiting():
            self._snapshot.take(policy, dense)
            self._place, self._step, self._after = place, int(state["step"]), after
            mine = dict(state) if ranks.rank() == 0 else None
            self._writing = self._thread.submit(self._snapshot.write, place, mine)
            self._begun = time.monotonic()

    def commit(self) -> None:
        """Let the checkpoint exist that all ranks have written; returns before it does. Collective."""
        with self._waiting():
            writing, self._writing = self._writing, None
            assert writing is not None
            entries = [entry for part in ranks.gather_object(ranks.together(writing.result)) for entry in part]
            if ranks.rank() == 0:
                self._committing = self._thread.submit(self._commit, entries)

    def _commit(self, entries: list[artifact.FileEntry]) -> None:
        self._fence()
        checkpoint.commit(self._place, self._step, entries)
        self._after()

    def finish(self) -> None:
        """Wait until the checkpoint under way stands. Collective; raises what its writing met."""
        with self._waiting():
            if self._writing is not None:
                self.commit()
            committing, self._committing = self._committing, None
            ranks.together(lambda: committing.result() if committing else None)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began, before = time.perf_counter(), self.waited
        try:
            yield
        finally:
            self.waited = before + time.perf_counter() - began
