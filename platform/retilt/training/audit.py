"""Reward models on held-out rewards, on this rank's share of the users (evaluation/audit.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from retilt import ranks
from retilt.config import model_of, place_table
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.evaluation import audit
from retilt.evaluation.baselines import Baselines
from retilt.ranks import together
from retilt.training import checkpoint, parallel
from retilt.training.companions import load_reward_model
from retilt.types import Batch, Reporter


def work(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The audit's report (``audit.build``) of several reward models beside the baselines, equal on all ranks.

    A ``Work`` of ``cluster.workers.on_workers``. The baselines are fitted to the training events of the models' own
    protocol; the one that is told rewards so far is told those of the first model's window. ``arguments``:

    - ``dataset``: URI;
    - ``reward_models``: name → checkpoint (``training.run.find_reward_model``), all of one protocol;
    - ``part``: ``test`` or ``validation``;
    - ``table``, ``device``, ``batch_users``: as in the configuration of an evaluation;
    - ``replicates``, ``seed``: of the bootstrap.
    """
    device = parallel.choose_device(arguments["device"])
    dataset = Dataset.open(arguments["dataset"])
    together(lambda: dataset.verify_share(ranks.rank(), ranks.world()))
    states = {name: checkpoint.read_state(place) for name, place in arguments["reward_models"].items()}

    def batches(name: str) -> Iterator[Batch]:
        length = model_of(states[name], arguments["reward_models"][name]).max_length
        return evaluation_batches(
            dataset, arguments["part"], length, "none", arguments["batch_users"], ranks.rank(), ranks.world()
        )

    bootstrap = arguments["replicates"], arguments["seed"], device
    tallies = {}
    for name, place in arguments["reward_models"].items():
        model = load_reward_model(place, dataset, device, place_table(arguments["table"], dataset.items))
        tallies[name] = audit.errors(model, batches(name), *bootstrap)
    first = next(iter(states))
    baselines = Baselines.fit(dataset, states[first]["lineage"][-1]["protocol"], device)
    tallies |= audit.baseline_errors(baselines, batches(first), *bootstrap)
    return {"audit": audit.build({name: each.sum_over_ranks() for name, each in tallies.items()})}
