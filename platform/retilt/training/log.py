"""The metrics of a run: JSON lines and TensorBoard beside them, rewritten whole with every checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retilt import storage


class MetricsLog:
    """``<output>/metrics.jsonl`` and ``<output>/tensorboard/``. Object stores cannot append, so both are put whole."""

    def __init__(self, output: str, step: int) -> None:
        """Continue the log of a run that stands at ``step``: later records, of steps to be repeated, are dropped."""
        self.output, self.place = output, storage.join(output, "metrics.jsonl")
        self.records: list[dict[str, Any]] = []
        if step and storage.exists(self.place):
            lines = storage.read_bytes(self.place).decode().splitlines()
            self.records = [record for line in lines if (record := json.loads(line))["step"] <= step]

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep one record; it must have ``step`` and be JSON-like."""
        self.records.append(dict(record))

    def rewind(self, step: int) -> None:
        """Forget the records of later steps, which will be repeated."""
        self.records = [record for record in self.records if record["step"] <= step]

    def flush(self, count: int) -> None:
        """Write the first ``count`` records in both forms; from any thread."""
        records = self.records[:count]
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        storage.write_bytes(self.place, lines.encode())
        self._tensorboard(records)

    def _tensorboard(self, records: Sequence[Mapping[str, Any]]) -> None:
        from tensorboardX import SummaryWriter

        with tempfile.TemporaryDirectory() as folder:
            with SummaryWriter(folder, filename_suffix=".retilt") as writer:
                for record in records:
                    for name, value in record.items():
                        if name != "step" and isinstance(value, int | float):
                            writer.add_scalar(name, value, record["step"])
            (events,) = Path(folder).iterdir()
            storage.write_bytes(
                storage.join(self.output, "tensorboard", "events.out.tfevents.retilt"), events.read_bytes()
            )
