"""The λ that a search tries: given, placed by the rewards' histogram, or taken from an earlier search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retilt import storage
from retilt.algorithms import temperatures as grids
from retilt.config import plain
from retilt.config.tune import TuneConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import drift, noise
from retilt.evaluation.drift import Snapshot
from retilt.evaluation.search.report import SEARCH
from retilt.training.parallel import choose_device
from retilt.types import InputError

AROUND = 1.5
"""After a little drift λ / 1.5, λ and 1.5 λ are tried."""
FACTS = "facts.json"
"""In the output's folder: whose search it is, and the data that a later one compares its own with."""


@dataclass(frozen=True)
class Proposal:
    """Which λ are tried, and why these."""

    source: str
    temperatures: list[float]
    """Ascending; none trains like another."""
    rates: list[float]
    """Learning rates that are tried with each."""
    points: list[dict[str, float]]
    """``temperature`` and ``ess``; empty where the weights are not of the logged reward alone."""
    merged: list[dict[str, float]] = field(default_factory=list)
    note: str | None = None
    noise: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    searched: Snapshot | None = None
    """Of the data on which λ was last searched, where those are not today's."""
    settled: bool = False
    """Whether there is nothing to search: the earlier choice stands."""

    def describe(self) -> list[str]:
        """What will be tried, in lines."""
        lines = [self.drift["reason"]] if self.drift else []
        if self.points:
            each = ", ".join(f"{point['temperature']:g} ({point['ess']:.2f})" for point in self.points)
            lines.append(f"λ {self.source}, each with its effective sample size ESS/n: {each}")
        else:
            lines.append(f"λ {self.source}: {', '.join(f'{each:g}' for each in self.temperatures)}")
        if self.note:
            lines.append(self.note)
        lines += [f"λ = {one['temperature']:g} is left out: it trains like λ = {one['kept']:g}" for one in self.merged]
        if self.noise:
            lines.append(
                f"noise of the rewards: SD {self.noise['sd']:.3g} ({self.noise['method']}); the theory's floor for it, "
                f"λ = {self.noise['floor']:.3g}, is a worst case and no recommendation"
            )
        return lines


def propose(config: TuneConfig, data: Dataset, rewards: Mapping[str, Any]) -> Proposal:
    """The grid of a search.

    Raises:
        InputError: all rewards are equal, or ``previous`` holds no search of λ, or one that chose by something else.
    """
    found = _noise(config, data)
    if config.previous is not None:
        return _after(config, data, rewards, found)
    return _fresh(config, rewards, found, None)


def _fresh(
    config: TuneConfig, rewards: Mapping[str, Any], found: Mapping[str, Any], drifted: Mapping[str, Any] | None
) -> Proposal:
    note = None
    if config.temperatures == "auto":
        proposed = grids.auto(rewards, config.points)
        wanted, note, source = proposed.temperatures, proposed.note, "by effective sample size"
    else:
        assert isinstance(config.temperatures, list)
        wanted, source = config.temperatures, "as given"
    kept, points, merged = _apart(config, wanted, rewards)
    return Proposal(source, kept, _rates(config, config.learning_rate), points, merged, note, found, drifted)


def _rates(config: TuneConfig, usual: float) -> list[float]:
    return config.learning_rates or [usual]


def _after(config: TuneConfig, data: Dataset, rewards: Mapping[str, Any], found: Mapping[str, Any]) -> Proposal:
    assert config.previous is not None
    place = storage.absolute(config.previous)
    for name in (SEARCH, FACTS):
        if not storage.exists(storage.join(place, name)):
            raise InputError(f"previous = {place}: no finished search there ({name} is missing); leave previous out")
    found_there, facts = (storage.read_json(storage.join(place, name)) for name in (SEARCH, FACTS))
    chosen_for = facts.get("chosen_for", {})  # absent from what an older version wrote
    if differing := [name for name, each in _chosen_for(config).items() if chosen_for.get(name, "not said") != each]:
        theirs = ", ".join(f"{name} = {chosen_for.get(name, 'not said')}" for name in differing)
        raise InputError(
            f"previous = {place}: λ was chosen there for something else ({theirs}); leave previous out, or search alike"
        )
    chosen, searched = found_there["choice"], Snapshot(**facts["searched"])
    temperature, rate = float(chosen["temperature"]), float(chosen["learning_rate"])
    drifted = {"previous": place, **drift.compare(searched, snapshot(data), temperature)}
    if drifted["level"] == "much":
        return _fresh(config, rewards, found, drifted)
    if drifted["level"] == "little":
        wanted = [float(f"{each:.3g}") for each in (temperature / AROUND, temperature, temperature * AROUND)]
        kept, points, merged = _apart(config, wanted, rewards)
        return Proposal(
            "around the previous choice", kept, _rates(config, rate), points, merged, None, found, drifted
        )  # fmt: skip
    points = grids.points([temperature], rewards) if config.plain_weights else []
    return Proposal(
        "of the previous choice", [temperature], [rate], points, [], None, found, drifted, searched, settled=True
    )  # fmt: skip


def _chosen_for(config: TuneConfig) -> dict[str, Any]:
    """What a λ was chosen by, and what it is the λ of: of another metric or other weights it says nothing."""
    named = {"selection_metric": config.selection_metric, "min_reward": config.min_reward}
    return named | {
        f"algorithm.{name}": each for name, each in plain(config.algorithm).items() if name != "temperature"
    }


def _apart(
    config: TuneConfig, wanted: list[float], rewards: Mapping[str, Any]
) -> tuple[list[float], list[dict[str, float]], list[dict[str, float]]]:
    """λ that train apart, their points, and those that were merged."""
    if not config.plain_weights:
        # Of what else the reward is made into the histogram knows nothing.
        return sorted(wanted), [], []
    kept, merged = grids.merge(wanted, rewards)
    return kept, grids.points(kept, rewards), merged


def _noise(config: TuneConfig, data: Dataset) -> dict[str, Any]:
    low, high = _ends(data.statistics("select"))
    estimated = noise.estimate(data, "select", choose_device(config.device))
    return noise.floor(estimated, data.items, high - low, tolerance=config.tolerance * (high - low))


def _ends(rewards: Mapping[str, Any]) -> tuple[float, float]:
    levels = rewards.get("levels")
    values = [float(each) for each, _ in levels] if levels else [float(each) for each in rewards["quantiles"]]
    return min(values), max(values)


def snapshot(data: Dataset) -> Snapshot:
    """What the drift test compares of a data set."""
    return Snapshot(data.users, data.items, data.events, data.statistics("select"))


def facts(config: TuneConfig, proposal: Proposal, data: Dataset, identity: str) -> dict[str, Any]:
    """``FACTS``. A search that took an earlier choice hands on what that was made on: drift adds up, night by night."""
    searched = asdict(proposal.searched or snapshot(data))
    return {"identity": identity, "searched": searched, "chosen_for": _chosen_for(config)}
