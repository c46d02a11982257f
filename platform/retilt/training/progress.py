"""Where a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retilt.data.plan import Cursor


@dataclass
class Progress:
    """Where a run stands; with the parameters all that it needs to go on as if it had never stopped."""

    step: int = 0
    cursor: Cursor = field(default_factory=lambda: Cursor(0, 0))
    best: list[dict[str, Any]] = field(default_factory=list)
    """Epoch, value and checkpoint of the best epochs so far, the best first, under ``select``."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """One record a finished epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch under way (meter.py)."""
    recent: dict[str, float] = field(default_factory=dict)
    """The same since the last line of the log."""
    seconds: float = 0.0
    """That the epoch under way has taken."""
    skipped: int = 0
    """Steps that were not taken because a loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """The last ones, by which a spike is known."""
    returns: int = 0
    """Times that the run went back to a checkpoint of its own accord."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Progress:
        """From ``asdict``'s form."""
        return cls(**{**values, "cursor": Cursor(**values["cursor"])})
