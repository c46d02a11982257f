"""The metrics of a run: JSON lines and TensorBoard beside them, put whole with every checkpoint.

Object stores cannot append. So that a long log does not cost more with each checkpoint than it is worth, every record
is encoded once, in both forms, and kept like that.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retilt import storage

METRICS = "metrics.jsonl"


class MetricsLog:
    """``<output>/metrics.jsonl`` and ``<output>/tensorboard/``; kept by rank 0."""

    def __init__(self, output: str, step: int) -> None:
        """Continue the log of a run that stands at ``step``: later records, of steps to be repeated, are dropped."""
        self.output, self.place = output, storage.join(output, METRICS)
        self._lines: list[tuple[int, str]] = []
        self._events = _Events()
        if step and storage.exists(self.place):
            for line in storage.read_bytes(self.place).decode(errors="replace").splitlines():
                try:
                    self._lines.append((int(json.loads(line)["step"]), line))
                except (ValueError, KeyError, TypeError):
                    continue  # a damaged line costs itself, not the run
        self.rewind(step)

    def __len__(self) -> int:
        """Number of records."""
        return len(self._lines)

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep one record; it must have ``step`` and be JSON-like."""
        self._lines.append((int(record["step"]), json.dumps(record, allow_nan=False)))

    def rewind(self, step: int) -> None:
        """Forget the records of later steps, which will be repeated."""
        self._lines = [(at, line) for at, line in self._lines if at <= step]
        self._events.restart()

    def close(self) -> None:
        """Give back the temporary folder."""
        self._events.restart()

    def flush(self, count: int) -> None:
        """Write the first ``count`` records in both forms; from one thread at a time."""
        lines = [line for _, line in self._lines[:count]]
        storage.write_bytes(self.place, "".join(f"{line}\n" for line in lines).encode())
        events = storage.join(self.output, "tensorboard", "events.out.tfevents.retilt")
        storage.write_bytes(events, self._events.upto(lines))


class _Events:
    """TensorBoard's file of the records so far, in a temporary folder, to which only new records are added."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._count = 0

    def restart(self) -> None:
        """Begin anew with the next call of ``upto``."""
        if self._folder is not None:
            self._writer.close()
            self._folder.cleanup()
        self._folder, self._count = None, 0

    def upto(self, lines: list[str]) -> bytes:
        """The file with all of ``lines``, which begin with those of the call before."""
        from tensorboardX import SummaryWriter

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="retilt-")
            self._writer = SummaryWriter(self._folder.name, filename_suffix=".retilt")
        for line in lines[self._count :]:
            record = json.loads(line)
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, record["step"])
        self._count = len(lines)
        self._writer.flush()
        (events,) = Path(self._folder.name).iterdir()
        return events.read_bytes()


def logged(output: str) -> list[dict[str, Any]]:
    """What the log of the run in ``output`` says of each epoch; empty where there is none."""
    place = storage.join(output, METRICS)
    lines = storage.read_bytes(place).decode().splitlines() if storage.exists(place) else []
    return [record for line in lines if "seconds" in (record := json.loads(line))]
