"""A simulated world → an event log: one file is written in this process, several side by side by Ray tasks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from retilt import storage
from retilt.cluster import session
from retilt.cluster.display import duration, say
from retilt.cluster.in_turn import in_turn, value
from retilt.cluster.stopping import released_on_sigterm
from retilt.config import SimulateConfig
from retilt.data import event_log, simulate
from retilt.data.event_log import EventLog, Written
from retilt.data.presets import PRESETS, Preset
from retilt.types import RetiltError


def run(config: SimulateConfig, dry_run: bool = False) -> dict[str, Any]:
    """Simulate a log, or only say what would be done; returns the manifest (``dry_run``: the plan).

    The log appears whole or not at all; one that is finished already is left as it is.

    Raises:
        InputError: sizes that do not go together; or ``output`` holds something else.
    """
    preset = PRESETS[config.preset]
    # Written out, so that a default and the same value given are one configuration.
    users, events = config.users or preset.users, config.events or preset.events
    items, noise = config.items or preset.world.items, config.noise or preset.world.noise
    sizes = {"users": users, "items": items, "events": events, "noise": noise}
    config = config.model_copy(update=sizes | {"output": storage.absolute(config.output)})
    preset = preset.sized(items, noise)
    parts = simulate.plan(preset.activity.lengths(users, events, preset.most(items), config.seed))
    if len(parts) > 1 or storage.scheme(config.output) != "memory":
        session.require_shared(config.output, "output", config.storage.shared_filesystem)
    log = EventLog(config.output, config)
    manifest = log.finished()
    say(f"{users:,} users choose {events:,} times among {items:,} items; {len(parts)} file(s)")
    if dry_run:
        return {"files": len(parts)}
    if manifest is not None:
        say(f"{config.output}: already simulated with this configuration")
    else:
        manifest = _simulate(config, preset, parts, log)
    _say_result(manifest, config)
    return manifest


def _simulate(config: SimulateConfig, preset: Preset, parts: Sequence[simulate.Part], log: EventLog) -> dict[str, Any]:
    written: list[Written] = []
    began, total = time.monotonic(), sum(part.events for part in parts)
    try:
        log.begin()
        for each in _written(config, preset, parts):
            written.append(each)
            done, seconds = sum(each.summary.events for each in written), time.monotonic() - began
            left = duration(seconds * (total - done) / done)
            say(f"  {len(written)} of {len(parts)} files, {done:,} events, {done / seconds:,.0f} a second, {left} left")
        return log.finish(written)
    except (RetiltError, ray.exceptions.RayError) as problem:
        inner = session.unwrapped(problem) if isinstance(problem, ray.exceptions.RayError) else problem
        log.abandon()
        raise inner from None


def _written(config: SimulateConfig, preset: Preset, parts: Sequence[simulate.Part]) -> Iterator[Written]:
    """Writes the files; what each holds, in their order."""
    if len(parts) == 1:
        with released_on_sigterm():
            yield event_log.write_part(config.output, preset, parts[0], config.seed, config.truth)
        return
    with session.connect(config.threads, dashboard=False):
        session.require_shared(config.output, "output", config.storage.shared_filesystem)
        arguments = ((config.output, preset, part, config.seed, config.truth) for part in parts)
        with contextlib.closing(in_turn(_write.remote, arguments)) as started:
            for reference in started:
                yield value(reference)


@ray.remote
def _write(uri: str, preset: Preset, part: simulate.Part, seed: int, truth: bool) -> Written | RetiltError:
    try:
        return event_log.write_part(uri, preset, part, seed, truth)
    except RetiltError as problem:
        return problem


def _say_result(manifest: dict[str, Any], config: SimulateConfig) -> None:
    size = sum(file["bytes"] for file in manifest["files"])
    reward = manifest["reward"]
    say(
        f"{config.output}: {manifest['events']:,} events of {manifest['users']:,} users, {size / 1e6:,.0f} MB; "
        f"rewards {reward['min']:.3g} to {reward['max']:.3g}, mean {reward['mean']:.3g}"
    )
    say(f"next: python jobs/prepare.py source={storage.join(config.output, event_log.EVENTS)} dataset=…")
