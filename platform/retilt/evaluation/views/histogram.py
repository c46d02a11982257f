"""The picture of how many events have each reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retilt.evaluation.views import drawing
from retilt.evaluation.views.methods import BLUE

TALLEST = 40
"""Levels of reward that still get a bar each; more are counted in as many bins."""
TOLD = 12
"""Levels whose shares are written above their bars."""


def png(histogram: Sequence[Sequence[float]] | None) -> bytes | None:
    """Share of the events with each reward, from ``[[reward, events], …]``; None where there are none."""
    if not histogram:
        return None
    reward, events = (np.array(column, dtype=float) for column in zip(*histogram, strict=True))
    share = 100 * events / events.sum()
    figure = drawing.figure(6.4, 3.2)
    axes = figure.add_subplot()
    if len(reward) <= TALLEST:
        step = np.diff(reward).min() if len(reward) > 1 else 1.0
        axes.bar(reward, share, width=0.8 * step, color=BLUE)
        for x, y in zip(reward, share, strict=True) if len(reward) <= TOLD else ():
            axes.annotate(f"{y:.1f}%", (x, y), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
        if len(reward) <= TOLD:
            axes.set_xticks(reward, [f"{each:g}" for each in reward])
    else:
        axes.hist(reward, bins=TALLEST, weights=share, color=BLUE)
    axes.margins(y=0.12)
    drawing.plain(axes, "reward", "share of events, %", "y")
    return drawing.png(figure)
