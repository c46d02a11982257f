"""jobs/reproduce.py: from data to a report, by a plan of steps of which only those that are missing are done."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retilt import lease, storage
from retilt.cluster import ingest, session, simulate, stopping
from retilt.cluster.display import say
from retilt.cluster.lanes import lanes, most, stop_all
from retilt.config import PrepareConfig, SimulateConfig, build, identity_hash, plain
from retilt.config.reproduce import ReproduceConfig
from retilt.data.dataset import Dataset
from retilt.data.event_log import EVENTS
from retilt.evaluation.reproduction import report
from retilt.evaluation.views import files
from retilt.types import InputError, RetiltError
from retilt.workflows import theory
from retilt.workflows.collect import Collector
from retilt.workflows.making import Maker
from retilt.workflows.plan import Plan
from retilt.workflows.presets import HIGH, LOW, PRESETS, K, Preset
from retilt.workflows.progress import Steps
from retilt.workflows.scheduling import Schedule, work_through
from retilt.workflows.steps import Evaluating, Outcome, Step

CLAIM = "reproduction.json"
WORLDS = 20
"""Fewest of the theory's map of who wins."""
FEWEST_SEEDS = 3
"""With fewer an interval over seeds says little: the half-width of two is 6.4 times their difference."""
WRITE_SECONDS = 60.0
"""Between two reports while steps are at work: one takes seconds of the CPU that they need."""


def run(config: ReproduceConfig, dry_run: bool = False) -> dict[str, Any]:
    """Reproduce, continue, or find finished what ``config`` describes; returns the results.

    Raises:
        InputError: a preset without its data, or an output that holds another reproduction.
        StorageError: a store failed; the same command continues.
        Stopped: SIGTERM.
    """
    config = config.model_copy(update={"output": storage.absolute(config.output)})
    session.require_shared(config.output, "output", config.storage.shared_filesystem)
    if config.preset == "theory":
        return {} if dry_run else _theory(config)
    preset = PRESETS[config.preset]
    _require_ours(config)
    if dry_run:
        return _dry_run(config, preset)
    with stopping.released_on_sigterm(), lease.hold(config.output):
        _require_ours(config)
        with _claimed(config):
            data = _prepared(config, preset)
        schedule = Schedule(_plan(config, data))
        schedule.find()
        if schedule.open():
            _work(config, schedule)
        found = _write(config, schedule)
    for line in said(config, found):
        say(line)
    return found


def _theory(config: ReproduceConfig) -> dict[str, Any]:
    with lease.hold(config.output):
        found = theory.run(config.output, config.seed_list[0], seeds=max(WORLDS, len(config.seed_list)))
    for name in (theory.REPORT, theory.RESULTS, theory.PLOT):
        say(storage.join(config.output, name))
    return found


def _work(config: ReproduceConfig, schedule: Schedule) -> None:
    with session.connect():
        session.require_shared(config.output, "output", config.storage.shared_filesystem)
        number = min(most(config.workers, config.threads, config.device), max(1, len(schedule.left())))
        steps = Steps(schedule, number)
        steps.say(f"{len(schedule.done)} steps are done, about {len(schedule.left())} are left; {number} lane(s)")
        write = Rarely(lambda: _write(config, schedule), WRITE_SECONDS)

        def ended(step: Step, outcome: Outcome) -> None:
            steps.ended(step, outcome)
            if isinstance(step.what, Evaluating):
                write()

        stop = stopping.Checkpointing(lambda: stop_all(group), config.stop_seconds, steps.say)
        with (
            lanes(
                number, workers=config.workers, threads=config.threads, device=config.device,
                hang_seconds=config.hang_seconds, show=steps.lane,
            ) as group,
            stop(),
            steps(),
        ):  # fmt: skip
            work_through(schedule, group, lambda: stop.asked, ended)


class Rarely:
    """Does something when it is called, but not within so many ``seconds`` of the last time."""

    def __init__(
        self, action: Callable[[], object], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._action, self._seconds, self._clock = action, seconds, clock
        self._next = -math.inf

    def __call__(self) -> None:
        if self._clock() >= self._next:
            self._action()
            self._next = self._clock() + self._seconds


def _plan(config: ReproduceConfig, data: Dataset) -> Plan:
    preset, rewards = PRESETS[config.preset], data.statistics("select")
    if rewards["reward_min"] == rewards["reward_max"]:
        raise InputError(
            f"{data.uri}: every training event has the reward {rewards['reward_max']:g}, so there is nothing to learn "
            "from rewards; give a data set whose rewards differ"
        )
    high = _quantile(rewards, HIGH) if preset.min_reward is None else preset.min_reward
    if high > rewards["reward_max"]:
        raise InputError(
            f"{data.uri}: no training event has a reward of {high:g} or more, by which preset={config.preset} chooses; "
            f"the largest is {rewards['reward_max']:g}. Use preset=watch_time, which goes by quantiles of the rewards"
        )
    low = _quantile(rewards, LOW) if preset.low_reward is None else preset.low_reward
    return Plan(Maker(config, preset, data.uri, high, low), rewards)


def _quantile(rewards: dict[str, Any], share: float) -> float:
    quantiles = rewards["quantiles"]
    return float(f"{quantiles[round(share * (len(quantiles) - 1))]:.3g}")


def _write(config: ReproduceConfig, schedule: Schedule) -> dict[str, Any]:
    """results.json and its views as things stand; what is missing is listed as not run."""
    found = Collector(schedule.plan, schedule.done, shlex.join(["python", *sys.argv])).results()
    report.write(config.output, found)
    return found


def said(config: ReproduceConfig, found: Mapping[str, Any]) -> list[str]:
    """What the job ends with: warnings, what is missing, where the report is, and what to run next."""
    lines = [f"WARNING: {each}" for each in found["warnings"]]
    lines += [f"not run: {each['what']} ({each['why']})" for each in found["not_run"]]
    if found["not_run"]:
        lines.append("the same command tries again what was not run")
    lines += [storage.join(config.output, name) for name in (files.HTML, files.MARKDOWN, report.RESULTS)]
    if len(config.seed_list) < FEWEST_SEEDS:
        lines.append(
            f"next: the same command with seeds={FEWEST_SEEDS} repeats what was chosen with other random numbers, for "
            "intervals over seeds"
        )
    if "exp_rsft" in found["arms"]:
        first = "bc_continued" if "bc_continued" in found["arms"] else "bc"
        runs = storage.join(config.output, f"seed-{config.seed_list[0]}", "refit")
        policies = ", ".join(f"{arm}: {storage.join(runs, arm)}" for arm in (first, "exp_rsft"))
        lines.append(
            f"next: python jobs/evaluate.py dataset={found['dataset']['uri']} policies='{{{policies}}}' part=test "
            f"groups=true output={storage.join(config.output, 'evaluation')}"
        )
    return lines


def _prepared(config: ReproduceConfig, preset: Preset) -> Dataset:
    """The data set: the one given, the one that is there, or one made from the preset's source."""
    place = config.dataset or storage.join(config.output, "data")
    if config.dataset is None and not storage.exists(storage.join(place, "manifest.json")):
        ingest.run(_preparation(config, preset, place))
    data = Dataset.open(storage.absolute(place))
    if config.dataset is None and data.k != K:
        raise InputError(f"{place}: a split with k = {data.k}, where the preset has {K}; choose another output")
    return data


def _preparation(config: ReproduceConfig, preset: Preset, place: str) -> PrepareConfig:
    source = preset.source
    if preset.simulation is not None:
        log = storage.join(config.output, "log")
        simulate.run(build(SimulateConfig, {**preset.simulation, "output": log}))
        source = storage.join(log, EVENTS)
    return build(
        PrepareConfig,
        {
            **preset.preparation, "source": source, "dataset": place, "name": config.preset, "split": "last_k",
            "k": K, "time_floor": config.floor_times, "storage": config.storage,
        },
    )  # fmt: skip


def _require_ours(config: ReproduceConfig) -> None:
    """Refuse a folder that holds another reproduction."""
    place = storage.join(config.output, CLAIM)
    if not storage.exists(place):
        storage.require_writable(config.output)
        return
    found = storage.read_json(place)
    if not isinstance(found, dict) or found.get("identity") != identity_hash(config):
        theirs, mine = (found.get("config", {}) if isinstance(found, dict) else {}), plain(config)
        names = [name for name in ReproduceConfig.model_fields if mine[name] != theirs.get(name, mine[name])]
        free = {name for name, each in ReproduceConfig.model_fields.items() if _is_free(each)}
        said = ", ".join(f"{name} = {theirs[name]!r}" for name in names if name not in free) or "of another version"
        raise InputError(f"{config.output} holds another reproduction ({said}); choose another output")


def _is_free(field: Any) -> bool:
    return (field.json_schema_extra or {}).get("identity") is False


@contextlib.contextmanager
def _claimed(config: ReproduceConfig) -> Iterator[None]:
    """Mark the output as this reproduction's; not where the block, which prepares the data, fails the first time."""
    place = storage.join(config.output, CLAIM)
    new = not storage.exists(place)
    storage.write_json(place, {"identity": identity_hash(config), "config": plain(config)})
    try:
        yield
    except RetiltError:
        if new:
            storage.delete(place)
        raise


def _dry_run(config: ReproduceConfig, preset: Preset) -> dict[str, Any]:
    """Says what would be done; the steps only where the data set is there, as they follow from it."""
    place = config.dataset or storage.join(config.output, "data")
    if not storage.exists(storage.join(place, "manifest.json")):
        say(f"would prepare {preset.source or 'a simulated log'} as {place}; the steps follow from the data")
        return {}
    schedule = Schedule(_plan(config, Dataset.open(storage.absolute(place))))
    schedule.find()
    left = schedule.left()
    say(f"{len(schedule.done)} steps are done, about {len(left)} are left")
    for step in left:
        say(f"  {step.key}")
    return {"done": len(schedule.done), "left": len(left)}
