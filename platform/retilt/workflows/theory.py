"""Section 4 of arXiv 2603.10279 as an experiment: what the theorems promise, what noise costs, and who wins where.

Everything is computed exactly in simulated worlds, or sampled where a finite log is the question; nothing is trained.
The parts are in ``tilting`` and ``winners``; docs/theory.md says how to read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from retilt import storage
from retilt.evaluation import theory_plot, theory_report
from retilt.evaluation.report import code_version
from retilt.types import InputError
from retilt.workflows import tilting
from retilt.workflows.winners import Grid, who_wins

FORMAT = 1
RESULTS, REPORT, PLOT = "theory.json", "theory.md", "theory.png"
FEWEST_ITEMS = 10


@dataclass(frozen=True)
class Scale:
    """How large the worlds are, and which."""

    items: int = 500
    states: int = 32
    catalogues: Sequence[int] = (100, 1_000, 10_000, 100_000)
    """Items of the worlds of one good item."""
    numbers: int = 4_000_000
    """Random numbers for each of them."""
    events: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)
    """Lengths of the logs with fresh noise."""
    grid: Grid = field(default_factory=Grid)


def run(output: str, seed: int = 0, seeds: int = 20, scale: Scale | None = None) -> dict[str, Any]:
    """Do the experiment and write theory.json, theory.md and theory.png into the folder ``output``, the first last.

    Args:
        output: URI of a folder.
        seed: of the single worlds, and the first of the map's.
        seeds: worlds of the map, from which its intervals come.
        scale: None for the default, which takes about half a minute on one core.

    Raises:
        InputError: too few seeds, items or states; ``output`` cannot be written.
    """
    scale = scale or Scale()
    if seeds < 2:
        raise InputError(f"seeds={seeds}: the map of who wins needs at least 2 worlds for its intervals")
    if scale.items < FEWEST_ITEMS or scale.states < 1:
        raise InputError(f"items={scale.items}, states={scale.states}: give at least {FEWEST_ITEMS} items and 1 state")
    storage.require_reachable(output)
    storage.require_writable(output)
    results = {
        "kind": "theory",
        "format": FORMAT,
        "seed": seed,
        "seeds": seeds,
        "temperatures": list(tilting.TEMPERATURES),
        "bounds": [tilting.against_bounds(scale.items, scale.states, seed, noise) for noise in tilting.NOISES],
        "attained": tilting.attained(),
        "one_good_item": tilting.one_good_item(scale.catalogues, seed, scale.numbers),
        "fresh_noise": [tilting.fresh(noise, scale.events, seed) for noise in ("fresh", "rare")],
        "winners": who_wins(scale.items, scale.states, range(seed, seed + seeds), scale.grid),
        "code": code_version(),
    }
    storage.write_bytes(storage.join(output, PLOT), theory_plot.png(results))
    storage.write_bytes(storage.join(output, REPORT), theory_report.render(results, PLOT).encode())
    storage.write_json(storage.join(output, RESULTS), results)
    return results
