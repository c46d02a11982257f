"""What a λ search costs beside one full-length run, and whether halving chooses what the whole grid would.

``python tests/benchmarks/lambda_search.py --output FOLDER`` prepares a data set, clones its behaviour, and searches
eight λ by halving. Beside it stands one full-length run at the chosen λ, as a trial too, so that both pay the same for
their workers. Seconds are those in which at least one trial's workers were at work; what it takes until their model
stands (processes, libraries, data set, initial policy) is told apart. ``--grid`` trains the whole grid as well, for
each of ``--seeds``, and compares the two choices on the grid's own validation tallies, paired by user. Everything
stands in FOLDER, and the same command goes on where it was.
Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from retilt import storage
from retilt.cluster import ingest, session, train
from retilt.cluster.rungs import run_rung
from retilt.cluster.trial import RANKS, measured
from retilt.config import PrepareConfig, TrainConfig, build
from retilt.config.tune import TuneConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import tallies
from retilt.evaluation.choice import deficit
from retilt.workflows import search
from retilt.workflows.trials import Maker, Trial

TRAINING = {"batch_users": 32, "table": "row_wise", "threads": 1, "min_reward": 4.5}
STEM = {"ml-100k": 20, "ml-1m": 40}
"""Epochs of behaviour cloning, of which validation chooses."""


def start(place: Path, source: str, initial: str | None) -> tuple[str, str]:
    """URIs of the data set and the BC policy, made where they are not there yet."""
    data, cloned = str(place / "data"), initial or str(place / "bc")
    if not storage.exists(storage.join(data, "manifest.json")):
        ingest.run(build(PrepareConfig, {"source": source, "dataset": data, "split": "last_k", "k": 10}))
    if initial is None:
        train.run(build(TrainConfig, {"dataset": data, "output": cloned, "epochs": STEM[source], **TRAINING}))
    return data, cloned


def config(place: Path, data: str, initial: str, how: str, seed: int, epochs: int) -> TuneConfig:
    """Eight λ, by halving or the whole grid."""
    values = {"dataset": data, "initial": initial, "output": str(place / f"{how}-{seed}"), "search": how}
    return build(TuneConfig, {**values, **TRAINING, "seed": seed, "epochs": epochs})


def at_work(folder: str) -> float:
    """Seconds in which the workers of at least one trial were at work."""
    clocks = [each["clock"] for each in _measured(folder)]
    total, until = 0.0, 0.0
    for began, ended in sorted(clocks):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def _measured(folder: str) -> list[dict[str, Any]]:
    files = [file.path for file in storage.list_files(folder) if file.path.endswith("/measured.json")]
    return [dict(storage.read_json(storage.join(folder, each))) for each in files]


def one_run(one: TuneConfig, place: Path, temperature: float) -> dict[str, Any]:
    """A single full-length trial in a folder of its own."""
    alone = one.model_copy(update={"output": str(place / f"alone-{one.seed}")})
    whole_here = not storage.list_files(alone.output)
    make = Maker(alone, Dataset.open(alone.dataset).statistics("select"), alone.min_reward)
    task = make.task(Trial("exp_rsft", temperature, alone.learning_rate), alone.epochs)
    began = time.monotonic()
    if measured(task["measured"]) is None:
        assert not run_rung([task], at_once=1, stop_seconds=60, show=lambda _: None)
    found = measured(task["measured"])
    assert found is not None
    positions = found["weights"]["positions"] * alone.epochs
    work = at_work(alone.output)
    start_up = time.monotonic() - began - work if whole_here else None
    return {"positions": positions, "seconds": work, "start_up": start_up}


def cost(place: Path, data: str, initial: str, epochs: int) -> dict[str, Any]:
    """The search by halving beside one full-length run."""
    one = config(place, data, initial, "halving", 0, epochs)
    whole_here = not storage.list_files(one.output)
    began = time.monotonic()
    found = search.run(one)
    whole, work = time.monotonic() - began, at_work(one.output)
    start_up = whole - work if whole_here else None
    alone = one_run(one, place, found["choice"]["temperature"])
    return {
        "positions": found["cost"]["positions"] / alone["positions"], "seconds": work / alone["seconds"],
        "search_seconds": work, "search_start_up": start_up, "run_seconds": alone["seconds"],
        "run_start_up": alone["start_up"], "chosen": found["choice"]["temperature"],
    }  # fmt: skip


def agreement(place: Path, data: str, initial: str, seed: int, epochs: int) -> dict[str, Any]:
    """Choices by halving and by the grid of one seed, and the paired deficit of the first on the grid's tallies."""
    halving = search.run(config(place, data, initial, "halving", seed, epochs))
    one = config(place, data, initial, "grid", seed, epochs)
    whole = search.run(one)
    names = [each["choice"]["trial"] for each in (halving, whole)]
    tally = [tallies.read(storage.join(one.output, "measured", f"{name}@{epochs}", RANKS))[0] for name in names]
    gap = deficit(tally[1], tally[0], whole["protocol"]["group"], whole["protocol"]["metric"])
    within = names[0] == names[1] or (gap["value"] or 0.0) <= (gap["se"] or 0.0)
    chosen = {how: each["choice"]["temperature"] for how, each in (("halving", halving), ("grid", whole))}
    return {"seed": seed, **chosen, "deficit": gap["value"], "se": gap["se"], "within_one_error": within}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--source", default="ml-100k", choices=STEM)
    parser.add_argument("--initial", help="URI of a BC policy on the data in OUTPUT/data, in place of a new one")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--grid", action="store_true", help="the whole grid too, for every seed")
    given = parser.parse_args()
    with session.connect():
        print(json.dumps(compared(given)))


def compared(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, told line by line."""
    place = given.output.absolute()
    data, initial = start(place, given.source, given.initial)
    found: dict[str, Any] = {"source": given.source, **cost(place, data, initial, given.epochs)}
    print(f"positions of a search over those of one run: {found['positions']:.2f} (wanted: at most 3)")
    print(f"seconds of work, search over one run:        {found['seconds']:.2f} (wanted: at most 3.5)")
    for what in ("search", "run"):
        start_up = found[f"{what}_start_up"]
        print(
            f"start-up of the workers, {what}: {'not known, it went on' if start_up is None else f'{start_up:.0f} s'}"
        )
    if given.grid:
        found["seeds"] = [agreement(place, data, initial, seed, given.epochs) for seed in range(given.seeds)]
        for each in found["seeds"]:
            print(
                f"seed {each['seed']}: halving {each['halving']:g}, grid {each['grid']:g}; deficit "
                f"{each['deficit']:.4f}, SE {each['se']:.4f}: {'' if each['within_one_error'] else 'NOT '}within one SE"
            )
    return found


if __name__ == "__main__":
    main()
