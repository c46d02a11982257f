"""Means of a running epoch, the pace, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping

from retilt.data.plan import Plan
from retilt.training.progress import Progress


class Meter:
    """Sums of an epoch and since the last line of progress."""

    def __init__(self, plan: Plan, epochs: int, progress: Progress) -> None:
        """Go on from the sums in ``progress``, which are updated in place, and the seconds that they took."""
        self._epoch, self._recent, cursor, seconds = progress.sums, progress.recent, progress.cursor, progress.seconds
        self._resumed, self._began = time.perf_counter(), time.perf_counter() - seconds
        self._recent_began, self._batches = self._resumed, 0
        self._left = plan.batches(cursor.epoch) * (epochs - cursor.epoch) - cursor.batch  # epochs differ by little

    def add(self, total: float, count: float, sums: Mapping[str, float]) -> None:
        """Count one step in."""
        self._batches += 1
        for into in (self._epoch, self._recent):
            for name, value in {"loss": total, "count": count, **sums}.items():
                into[name] = into.get(name, 0.0) + value

    @property
    def seconds(self) -> float:
        """Seconds of the epoch so far, those before an interruption included."""
        return time.perf_counter() - self._began

    def whole(self) -> dict[str, float]:
        """Means over the epoch's positions."""
        return _means(self._epoch) | {"positions_per_second": _rate(self._epoch, self._began), "seconds": self.seconds}

    def recent(self) -> dict[str, float] | None:
        """Means since the last call, the pace and the seconds that are left; None without a step since then."""
        if not self._recent:
            return None
        means, rate = _means(self._recent), _rate(self._recent, self._recent_began)
        self._recent.clear()
        self._recent_began = time.perf_counter()
        pace = (time.perf_counter() - self._resumed) / self._batches
        left = (self._left - self._batches) * pace
        return {**means, "positions_per_second": rate, "seconds_left": left}


def _rate(sums: Mapping[str, float], began: float) -> float:
    return sums.get("positions", 0.0) / max(time.perf_counter() - began, 1e-9)


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """The loss per ``count``, everything else per position."""
    positions = sums.get("positions", 0.0) or 1.0
    means = {name: value / positions for name, value in sums.items() if name not in ("loss", "count", "positions")}
    return {"loss": sums.get("loss", 0.0) / (sums.get("count", 0.0) or 1.0), **means}
