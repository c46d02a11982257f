"""What simulated logs resemble, and how fast they are made: ml-1m beside a log of ``preset=ratings`` of its size.

    python tests/benchmarks/simulated_log.py [--log FOLDER ...]

simulates in this process, three times for the rate by its CPU time, and prints a table of statistics and, as its last
line, one JSON object. ml-1m is found as ``prepare`` finds it. Each ``--log``, a folder that jobs/simulate.py wrote,
gets a column of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from retilt import artifact, storage
from retilt.data import event_log, simulate, sources
from retilt.data.presets import PRESETS
from retilt.data.world import World

Events = Mapping[str, npt.NDArray[Any]]
NAMES = ("user", "item", "reward", "time")
RUNS = 3


def gini(count: npt.NDArray[Any]) -> float:
    """Gini coefficient of counts."""
    ordered = np.sort(count).astype(float)
    rank = np.arange(1, len(ordered) + 1)
    return float(2 * (rank * ordered).sum() / (len(ordered) * ordered.sum()) - (len(ordered) + 1) / len(ordered))


def describe(events: Events) -> dict[str, float]:
    """The statistics that are compared; events of a user must follow each other in the order of time."""
    user, item, reward, time_ = (events[name] for name in ("user", "item", "reward", "time"))
    activity, popularity = np.bincount(user), np.bincount(item)
    per_user, per_item = (np.bincount(ids, reward) / np.maximum(np.bincount(ids), 1) for ids in (user, item))
    there, common = activity > 0, popularity >= 20
    found = {"users": float(there.sum()), "items": float((popularity > 0).sum()), "events": float(len(user))}
    for part in (10, 25, 50, 75, 90, 99, 100):
        found[f"events of a user, {part}%"] = float(np.percentile(activity[there], part))
    ordered = np.sort(popularity[popularity > 0])[::-1]
    for part in (1, 5, 10, 25, 50):
        found[f"events of the top {part}% of items"] = float(ordered[: len(ordered) * part // 100].sum() / len(user))
    found["events of the first item"] = float(ordered[0] / len(user))
    found |= {"Gini, items": gini(ordered), "Gini, users": gini(activity[there])}
    for level in range(1, 6):
        found[f"reward {level}"] = float((reward == level).mean())
    found |= {"reward, mean": float(reward.mean(dtype=float)), "reward, SD": float(reward.std(dtype=float))}
    found["SD of users' means"] = float(per_user[there].std())
    found["SD of items' means (20 events)"] = float(per_item[common].std())
    found["corr. with log popularity"] = float(np.corrcoef(per_item[common], np.log(popularity[common]))[0, 1])
    same = np.diff(user) == 0
    gap = np.diff(time_)[same]
    found["gaps of 0 s"] = float((gap == 0).mean())
    for part in (25, 50, 75, 90):
        found[f"other gaps, {part}%, s"] = float(np.percentile(gap[gap > 0], part))
    found["gaps over an hour"] = float((gap > 3600).mean())
    last = np.flatnonzero(np.append(~same, True))
    found["users with the last event tied"] = float((time_[last] == time_[last - 1]).mean())
    return found


def ml_1m() -> Events:
    """The events of ml-1m, each user's in the order of time."""
    with tempfile.TemporaryDirectory() as staging, storage.open_input(sources.locate("ml-1m", staging, print)) as file:
        table = pq.read_table(file)
    columns = [sources.COLUMNS.user, sources.COLUMNS.item, sources.COLUMNS.reward, sources.COLUMNS.time]
    events = {name: table[column].to_numpy() for name, column in zip(NAMES, columns, strict=True)}
    order = np.lexsort((events["time"], events["user"]))
    return {name: values[order] for name, values in events.items()}


def simulated(users: int, items: int, events: int) -> tuple[Events, float]:
    """A log of ``preset=ratings``, and events a second of CPU time."""
    preset = PRESETS["ratings"].sized(items, None)
    began = time.process_time()
    world = World(preset.world, 0)
    length_U = preset.activity.lengths(users, events, preset.most(items), 0)
    chunks = [chunk for part in simulate.plan(length_U) for chunk in part.chunks]
    found = [simulate.simulate(world, preset, chunk) for chunk in chunks]
    rate = events / (time.process_time() - began)
    return {name: np.concatenate([each[name] for each in found]) for name in NAMES}, rate


def written(folder: str) -> Events:
    """The events of a log that jobs/simulate.py wrote."""
    manifest = artifact.read_manifest(folder, event_log.KIND, [event_log.FORMAT])
    parts = [pq.read_table(storage.join(folder, file["path"]), columns=list(NAMES)) for file in manifest["files"]]
    return {name: np.concatenate([part[name].to_numpy() for part in parts]) for name in NAMES}


def words(number: float) -> str:
    """Counts in full, shares to three digits."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", action="append", default=[], help="a folder that jobs/simulate.py wrote")
    logs = parser.parse_args().log
    columns = {"ml-1m": describe(ml_1m())}
    sizes = [int(columns["ml-1m"][name]) for name in ("users", "items", "events")]
    runs = [simulated(*sizes) for _ in range(RUNS)]
    columns["ratings"] = describe(runs[0][0])
    columns |= {storage.name(each): describe(written(each)) for each in logs}
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in columns["ml-1m"]:
        print(f"| {name} | {' | '.join(words(each[name]) for each in columns.values())} |")
    rates = [rate for _, rate in runs]
    print(f"{statistics.median(rates):,.0f} events a second of CPU time ({min(rates):,.0f} to {max(rates):,.0f})")
    load = os.getloadavg()[0]
    print(json.dumps({"columns": columns, "events_per_second": statistics.median(rates), "runs": rates, "load": load}))


if __name__ == "__main__":
    main()
