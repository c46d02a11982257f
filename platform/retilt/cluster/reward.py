"""jobs/train_reward.py: train a reward model, then say how well it predicts beside predictors that know no sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retilt import storage
from retilt.algorithms.reward_model import RewardModel
from retilt.cluster import session, train
from retilt.cluster.display import say
from retilt.cluster.workers import on_workers
from retilt.config import TrainConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import audit as audits
from retilt.training import audit, checkpoint, parallel
from retilt.training.run import find_reward_model
from retilt.types import InputError

AUDIT = "audit.json"
NAMES = {"paper": "reward_model", "strong": "strong"}
"""What an audit calls the variants."""
REPLICATES = 1000


def run(config: TrainConfig, dry_run: bool = False) -> dict[str, Any]:
    """Train (or continue, or find finished) a reward model and audit it on the test part; returns the run's result.

    The audit is ``audit.json`` in the run's folder: made anew only where the reward model is another one.

    Raises:
        InputError: ``config`` describes no reward model, or what ``train.run`` refuses.
    """
    if not isinstance(config.algorithm, RewardModel):
        raise InputError(
            f"algorithm = '{config.algorithm.name}' trains a policy, and jobs/train_reward.py reward models: leave "
            "algorithm out here, or use jobs/posttrain.py"
        )
    result = train.run(config, dry_run=dry_run)
    if dry_run:
        return result
    place, _ = find_reward_model(config.output, Dataset.open(config.dataset))
    written, identity = storage.join(storage.absolute(config.output), AUDIT), checkpoint.fingerprint(place)
    found = storage.read_json(written) if storage.exists(written) else None
    if not isinstance(found, dict) or found.get("fingerprint") != identity:
        models = {NAMES[config.algorithm.variant]: place}
        with session.connect():
            found = {"kind": "audit", "fingerprint": identity, **measure(config, models)}
        storage.write_json(written, found)
    for line in [*audits.table(found["audit"]), written]:
        say(line)
    for warning in found["warnings"]:
        say(f"WARNING: {warning}")
    return {**result, "audit": found["audit"], "warnings": found["warnings"]}


def measure(config: TrainConfig, places: Mapping[str, str], part: str = "test") -> dict[str, Any]:
    """The audit of reward models (name → checkpoint) on a held-out part of ``config``'s data set, on its workers.

    Needs a connected cluster. Returns ``part``, ``audit`` (evaluation/audit.py) and ``warnings``.
    """
    found = on_workers(
        audit.work,
        {
            "dataset": storage.absolute(config.dataset), "reward_models": dict(places), "part": part,
            "table": config.table, "device": config.device, "batch_users": config.batch_users,
            "replicates": REPLICATES, "seed": 0,
        },
        workers=config.worker_range[0],
        threads=config.threads,
        gpu=parallel.choose_device(config.device).type == "cuda",
        show=lambda update: None,
    )  # fmt: skip
    return {"part": part, "audit": found["audit"], "warnings": audits.warnings(found["audit"])}
