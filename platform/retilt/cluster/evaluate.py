"""jobs/evaluate.py: policies on held-out events, exactly, side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from retilt import ranks, storage
from retilt.cluster import session
from retilt.cluster.display import say
from retilt.cluster.messages import Update
from retilt.cluster.workers import on_workers
from retilt.config import EvaluateConfig, model_of, place_table, plain
from retilt.data.dataset import Dataset
from retilt.data.plan import check_world
from retilt.data.stream import evaluation_batches
from retilt.evaluation import report
from retilt.evaluation.lineage import check_lineage
from retilt.evaluation.markdown import console_table
from retilt.evaluation.ranking import tally
from retilt.evaluation.report import Evaluated
from retilt.evaluation.statistics import Tally
from retilt.ranks import together
from retilt.training import checkpoint, parallel
from retilt.training.assemble import Blueprint, assemble
from retilt.training.run import require_vocabulary
from retilt.types import InputError, Reporter


def run(config: EvaluateConfig, dry_run: bool = False) -> dict[str, Any]:
    """Evaluate every policy of ``config`` and write metrics.json, report.md and metrics.png; returns the report.

    Raises:
        InputError: data set or policy absent or damaged, other vocabularies, a part that a policy trained on, an
            output that holds something else.
    """
    _require_shared(config)
    dataset = Dataset.open(config.dataset)
    dataset.require_files()
    check_world(dataset.lanes, config.workers)
    places = {name: checkpoint.find(storage.absolute(uri)) for name, uri in config.policies.items()}
    identities, warnings = _identities(places, dataset, config.part)
    output = storage.absolute(config.output)
    _check_output(output)
    held_out = f"{config.part} part of {dataset.name}: {dataset.users:,} users, {dataset.items:,} items"
    say(f"{len(places)} policies on the {held_out}")
    say(f"exact ranks over the whole catalogue, history excluded: {config.exclude_history}; {config.workers} worker(s)")
    if dry_run:
        return {}
    with session.connect():
        _require_shared(config)
        found = on_workers(
            _work,
            {"config": plain(config), "dataset": storage.absolute(config.dataset), "places": places},
            workers=config.workers,
            threads=config.threads,
            gpu=parallel.choose_device(config.device).type == "cuda",
            show=_show,
        )
    tallies: dict[str, Tally] = found["tallies"]
    built = report.build(
        {name: Evaluated(tallies[name], identities[name], warnings[name]) for name in places},
        dataset=dataset.manifest,
        dataset_uri=config.dataset,
        part=config.part,
        min_reward=config.min_reward,
        exclude_history=config.exclude_history,
        command=shlex.join(["python", *sys.argv]),
    )
    report.write(output, built)
    Console().print(console_table(built))
    for name in (report.REPORT, report.METRICS, report.PLOT):
        say(storage.join(output, name))
    return built


def _require_shared(config: EvaluateConfig) -> None:
    """See cluster/train.py: once before there is a connection, once with it."""
    for key in ("dataset", "output"):
        session.require_shared(getattr(config, key), key, config.storage.shared_filesystem)
    for name, uri in config.policies.items():
        session.require_shared(uri, f"policies.{name}", config.storage.shared_filesystem)


def _identities(
    places: Mapping[str, str], dataset: Dataset, part: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """What identifies each policy in the report, and the warnings its lineage gives rise to."""
    identities: dict[str, dict[str, Any]] = {}
    warnings: dict[str, list[str]] = {}
    for name, place in places.items():
        state = checkpoint.read_state(place)
        require_vocabulary(state, dataset, place)
        warning = check_lineage(state["lineage"], dataset.manifest, part)
        warnings[name] = [warning] if warning else []
        identities[name] = {
            "uri": place,
            "fingerprint": checkpoint.fingerprint(place),
            "protocol": state["lineage"][-1]["protocol"],
            "model": plain(model_of(state, place)),
            "algorithm": state["config"]["algorithm"],
            "epochs": state["epochs"],
            "config_sha256": state["config_sha256"],
            "lineage": state["lineage"],
        }
    return identities, warnings


def _check_output(output: str) -> None:
    """An evaluation may replace an earlier one, and nothing else."""
    storage.require_writable(output)
    files = {file.path for file in storage.list_files(output)}
    if files and not files <= {report.METRICS, report.REPORT, report.PLOT}:
        other = sorted(files - {report.METRICS, report.REPORT, report.PLOT})[0]
        raise InputError(f"{output} holds something else ({other}); choose another output for the evaluation")


def _show(update: Update) -> None:
    say(f"{update['policy']}: ranked {update['targets']:,} targets")


def _work(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """One rank's share of the users, for one policy after the other; the tallies are summed over ranks."""
    config = EvaluateConfig.model_validate(arguments["config"])
    device = parallel.choose_device(config.device)
    dataset = Dataset.open(arguments["dataset"])
    together(lambda: dataset.verify_share(ranks.rank(), ranks.world()))
    tallies: dict[str, Tally] = {}
    for name, place in arguments["places"].items():
        tallies[name] = _evaluate(config, dataset, place, device).sum_over_ranks()
        if ranks.rank() == 0:
            reporter.progress({"policy": name, "targets": tallies[name].count("n")})
    return {"tallies": tallies}


def _evaluate(config: EvaluateConfig, dataset: Dataset, place: str, device: Any) -> Tally:
    state = checkpoint.read_state(place)
    model = model_of(state, place)
    placement = place_table(config.table, dataset.items)
    blueprint = Blueprint(model, dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, 0)
    # Items that came after the policy was trained: it cannot recommend them, and as targets they are misses.
    known = torch.arange(dataset.items + 1) <= int(state["items"])
    counts = dataset.train_counts(state["lineage"][-1]["protocol"]) * known
    policy, _ = assemble(blueprint, dataset.active() & known, device)
    together(lambda: checkpoint.load(place, policy, None))
    batches = evaluation_batches(
        dataset, config.part, model.max_length, config.exclude_history, config.batch_users, ranks.rank(), ranks.world()
    )
    return tally(
        policy.eval(), batches, train_counts=counts,
        min_reward=config.min_reward, replicates=config.replicates, seed=config.seed, device=device,
    )  # fmt: skip
