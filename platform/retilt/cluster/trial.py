"""One trial of a search: a run of its own workers, and what its best policy does on validation data.

``conduct`` runs in an actor of Ray Tune (rungs.py) and starts the workers; ``work`` is what they do. What was measured
stands in ``<measured>/measured.json``, beside the tallies ``ranks`` and ``exact``, and is found by the same command.
The ranks are those of the run's own validation, so that nothing is ranked twice. ``clock`` there is when the ranks'
model stood and when all was measured, in seconds: what came before is start-up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from retilt import lease, ranks, storage
from retilt.cluster import evaluate
from retilt.cluster.evaluate_share import Share
from retilt.cluster.train import worker_numbers
from retilt.cluster.workers import on_workers
from retilt.config import EvaluateConfig, TrainConfig, build
from retilt.evaluation import tallies
from retilt.evaluation.statistics import Tally
from retilt.ranks import together
from retilt.training import loop
from retilt.training.log import logged
from retilt.training.parallel import choose_device
from retilt.training.run import RESULT, check_output, finished, plan_run
from retilt.training.validation import kept
from retilt.types import Reporter

MEASURED = "measured.json"
RANKS, EXACT = "ranks", "exact"
"""Tallies: metrics of ranks, and where the task asks for it exact KL to the initial policy and entropy."""

Task = Mapping[str, Any]
"""``name``; ``training``, a complete configuration as ``plain`` gives it, None to measure ``policy`` untrained;
``measured``, URI of the folder for what is measured; ``evaluation``, settings of ``EvaluateConfig``, whose replicates
are those of every tally; ``exact``, whether KL and entropy of a trained policy are measured too (of an untrained one
they always are)."""


def conduct(task: Task, messages: Any, board: Any) -> None:
    """Train to the task's epochs what is not trained yet, and measure it.

    Args:
        task: see ``Task``.
        messages: the actor between this process and its workers. Whoever started the search owns it, so that it
            outlives this process, and its successor finds the room that these workers hold.
        board: the actor (also messages.Messages) that hears of progress.

    Raises:
        InputError, StorageError, TrainingError, Stopped: as a run alone.
    """
    if (room := ray.get(messages.room.remote())) is not None:
        # Of an attempt that was killed: its workers would hold the CPUs that this one's wait for.
        board.push.remote({"trial": task["name"], "note": "its process ended; it goes on from its last checkpoint"})
        ray.util.remove_placement_group(room)

    def show(update: Mapping[str, Any]) -> None:
        board.push.remote({**update, "trial": task["name"]})

    if task["training"] is None:
        _on_workers({"training": None, "task": task}, build(EvaluateConfig, task["evaluation"]), messages, show)
        return
    config = build(TrainConfig, task["training"])
    planned = plan_run(config)
    with lease.hold(planned.config.output) as held:
        check_output(planned)
        extras = {"lease": held.token, "replicates": task["evaluation"]["replicates"]}
        training = None if finished(planned) else {**planned.task(), **extras}
        _on_workers({"training": training, "task": task, "lease": held.token}, config, messages, show)


def _on_workers(arguments: dict[str, Any], config: TrainConfig | EvaluateConfig, messages: Any, show: Any) -> None:
    on_workers(
        work,
        arguments,
        workers=worker_numbers(config) if isinstance(config, TrainConfig) else config.workers,
        threads=config.threads,
        gpu=choose_device(config.device).type == "cuda",
        show=show,
        hang_seconds=config.hang_seconds if isinstance(config, TrainConfig) else 300,
        messages=messages,
    )


def work(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """What the trial's ranks do. Collective."""
    task: Task = arguments["task"]
    found: dict[str, Tally] = {}
    result: Mapping[str, Any] = {}
    if task["training"] is None:
        share = _share(task)
        began = time.time()
        ((found[RANKS], further),) = share.measure(reporter).values()
        assert further.avg_reward is not None
        found[EXACT] = further.avg_reward
    else:
        output = task["training"]["output"]
        run = None if arguments["training"] is None else loop.Run(arguments["training"], reporter)
        began = time.time()
        result = run.train() if run else together(lambda: dict(storage.read_json(storage.join(output, RESULT))))
        del run  # its tables and the optimizer's state, before the best policy and the initial one are loaded
        best = result["best"]
        if result["epochs"] > task["training"]["epochs"]:
            best = together(lambda: _best(task["training"]))
        # Of its best epoch; of its last where no target says which is best.
        epoch = best["epoch"] if best else min(result["epochs"], task["training"]["epochs"])
        found[RANKS] = together(lambda: tallies.read(kept(output, epoch))[0])
        if task["exact"] and best == result["best"]:  # a policy that has given way to a better one is gone
            found[EXACT] = _share(task).scores()
        result = {**result, "best": best}
    facts = {"best": result.get("best"), "weights": result.get("weights"), "exact": EXACT in found}
    facts["clock"] = [began, time.time()]

    def write() -> None:
        if ranks.rank() == 0:
            if "lease" in arguments:
                lease.require(task["training"]["output"], arguments["lease"])
            for name, tally in found.items():
                tallies.write(storage.join(task["measured"], name), tally, {"trial": task["name"]})
            storage.write_json(storage.join(task["measured"], MEASURED), facts)

    together(write)
    return {}


def _best(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``best`` of a run's result was after the task's epochs, of a run that has gone on since.

    So λ may be added to a search though its rungs then are others.
    """
    metric = f"validation/{training['selection_metric']}"
    of_epoch = {each["epoch"]: each[metric] for each in logged(training["output"]) if metric in each}
    known = {epoch: value for epoch, value in of_epoch.items() if epoch <= training["epochs"]}
    if not known:
        return None
    epoch = max(known, key=lambda each: known[each])  # the first of equal ones
    result = storage.read_json(storage.join(training["output"], RESULT))["best"]
    return dict(result) if result["epoch"] == epoch else {"epoch": epoch, "value": known[epoch]}


def _share(task: Task) -> Share:
    return Share(together(lambda: evaluate.plan(build(EvaluateConfig, task["evaluation"]))).arguments)


def measured(place: str) -> dict[str, Any] | None:
    """What was measured in the folder ``place``, where it is written last; None where nothing stands there yet."""
    found = storage.join(place, MEASURED)
    return dict(storage.read_json(found)) if storage.exists(found) else None
