"""What a run is before any worker starts: inputs checked, defaults resolved, the output folder claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from retilt import storage
from retilt.algorithms.online import Online
from retilt.algorithms.reward_model import RewardModel
from retilt.config import TrainConfig, config_hash, dump_yaml, identity_hash, model_of, plain
from retilt.data.dataset import Dataset
from retilt.data.plan import Plan, check_world
from retilt.evaluation.lineage import check_lineage
from retilt.lease import LEASE
from retilt.models.backbone import Model
from retilt.models.catalog import require_rows
from retilt.training import checkpoint
from retilt.training.fit import rewards_of
from retilt.training.parallel import choose_device
from retilt.types import DamagedError, InputError

RUN, RESULT = "run.json", "result.json"
AT_WORK = ("lease", "replicates", "start")
"""What a task has beside what ``run.json`` keeps of it."""


@dataclass(frozen=True)
class PlannedRun:
    """A checked run; ``config`` is complete, so workers need nothing else."""

    config: TrainConfig
    lineage: list[dict[str, Any]]
    identity: str
    """Equal for the same command: configuration, data and initial policy."""
    dataset: Dataset
    warning: str | None

    def task(self) -> dict[str, Any]:
        """What a worker is given, and what ``run.json`` keeps."""
        return {
            "identity": self.identity,
            "data": self.dataset.fingerprint,
            "config": plain(self.config),
            "config_sha256": config_hash(self.config),
            "lineage": self.lineage,
        }


def plan_run(config: TrainConfig) -> PlannedRun:
    """Check the inputs of a run and resolve what depends on them.

    Raises:
        InputError: data set, initial policy or reward model absent or damaged, other vocabulary, other model, trained
            on the part that chooses the epoch, a reward model of shorter histories, something missing that an online
            objective needs, more workers than lanes or than the item table can be sharded over, or rewards that the
            algorithm refuses.
    """
    dataset = Dataset.open(config.dataset)
    dataset.require_files()
    check_world(dataset.lanes, config.worker_range[1])
    if config.placement_for(dataset.items) == "row_wise":
        require_rows(dataset.items + 1, config.worker_range[1])
    rewards_of(config.algorithm, dataset, config.protocol)
    Plan.of(dataset, config.batch_users, config.seed)
    lineage: list[dict[str, Any]] = []
    model: Model | None = config.model
    initial, warning = None, None
    facts: dict[str, Any] = {"dataset": dataset.fingerprint, "initial": None}
    if config.initial is not None:
        initial = checkpoint.find(storage.absolute(config.initial))
        state = checkpoint.read_state(initial)
        checkpoint.require_policy(state, initial)
        model = _initial_model(config, state, initial)
        require_vocabulary(state, dataset, initial)
        lineage, facts["initial"] = list(state["lineage"]), checkpoint.fingerprint(initial)
    reward_model = None
    if config.reward_model is not None:
        reward_model, taught_by = find_reward_model(config.reward_model, dataset)
        lineage += [entry for entry in taught_by if entry not in lineage]
        facts["reward_model"] = checkpoint.fingerprint(reward_model)
    judge = None
    if config.judge is not None:
        # What it was trained on is no part of the lineage: nothing is learned from it.
        judge, _ = find_reward_model(config.judge, dataset, "judge")
        facts["judge"] = checkpoint.fingerprint(judge)
    if lineage and config.protocol == "select":
        warning = check_lineage(lineage, dataset.manifest, "validation")
    config = config.model_copy(
        update={
            "dataset": storage.absolute(config.dataset),
            "output": storage.absolute(config.output),
            "initial": initial,
            "reward_model": reward_model,
            "judge": judge,
            "model": model,
            "softmax": config.softmax_for(dataset.items, choose_device(config.device).type == "cuda"),
        }
    )
    _require_companions(config)
    _require_windows(config)
    lineage.append(dataset.lineage(config.protocol, storage.name(config.output)))
    identity = identity_hash(config, **facts)
    return PlannedRun(config, lineage, identity, dataset, warning)


def _initial_model(config: TrainConfig, state: dict[str, Any], initial: str) -> Model:
    model = model_of(state, initial)
    if config.model is not None and config.model != model:
        raise InputError(
            f"model differs from that of the initial policy {initial} ({state['model']}); leave model out: "
            "it is the policy's"
        )
    return model


def find_reward_model(uri: str, dataset: Dataset, key: str = "reward_model") -> tuple[str, list[dict[str, Any]]]:
    """The checkpoint of a reward model, and its lineage; ``key`` is the one that it was given by.

    Raises:
        InputError: it is absent, no reward model, or numbers other items than the data set.
    """
    place = checkpoint.find(storage.absolute(uri))
    state = checkpoint.read_state(place)
    if (algorithm := state["config"]["algorithm"]["name"]) != "reward_model":
        raise InputError(
            f"{key}: {place} is a policy trained with algorithm={algorithm}, no reward model; "
            "jobs/train_reward.py trains one"
        )
    require_vocabulary(state, dataset, place)
    return place, list(state["lineage"])


def _require_windows(config: TrainConfig) -> None:
    """Raise InputError where a reward model reads fewer events than the policy whose histories it is to score."""
    assert config.model is not None
    longest = config.model.max_length
    for key, place in (("reward_model", config.reward_model), ("judge", config.judge)):
        if place is not None and (length := model_of(checkpoint.read_state(place), place).max_length) < longest:
            raise InputError(
                f"{key}: {place} reads histories of up to {length} events, and the policy has up to {longest}; train "
                "the reward model from this policy, or from one whose model.max_length is at least as large"
            )


def _require_companions(config: TrainConfig) -> None:
    """Raise InputError where an objective lacks a model that it starts or learns from; ``config`` resolved."""
    if isinstance(config.algorithm, RewardModel) and config.initial is None:
        raise InputError(
            "algorithm = 'reward_model' needs initial, the policy whose trunk it is a head on; jobs/pretrain.py trains "
            "one with algorithm=bc"
        )
    if not isinstance(config.algorithm, Online):
        return
    name = config.algorithm.name
    if config.initial is None:
        raise InputError(
            f"algorithm = '{name}' needs initial, the policy that it starts from and is held to; "
            "jobs/pretrain.py trains one with algorithm=bc"
        )
    if config.reward_model is None:
        raise InputError(
            f"algorithm = '{name}' needs reward_model, which says what the policy's own choices are worth; "
            "jobs/train_reward.py trains one"
        )
    if config.softmax == "sampled":
        raise InputError(
            f"algorithm = '{name}' needs the exact softmax, for its draws and the divergence, and it is sampled here "
            "(auto does so for a large catalogue); use softmax=exact"
        )
    if config.precision == "bf16":
        raise InputError(
            f"algorithm = '{name}' does not go with precision = 'bf16', whose rounding would count as divergence from "
            "the initial policy; use precision=float32"
        )


def require_vocabulary(state: dict[str, Any], dataset: Dataset, policy: str) -> None:
    """Raise InputError where a data set does not number a policy's items as the policy does; it may have more."""
    if not dataset.extends(state["vocabulary_sha256"], state["items"]):
        raise InputError(
            f"{policy} was trained with another vocabulary ({state['items']:,} items) than the data set {dataset.uri} "
            f"({dataset.items:,} items); use the data set that the policy was trained on, or prepare the new one with "
            "vocabulary= that data set, which keeps the items' numbers"
        )


def require_same_run(state: Mapping[str, Any], task: Mapping[str, Any], dataset: Dataset, place: str) -> None:
    """Raise InputError where a checkpoint in a run's folder is not that run's."""
    require_vocabulary(dict(state), dataset, place)
    if state["identity"] != task["identity"]:
        raise InputError(
            f"{place} is a checkpoint of another configuration or data set than the run in its folder; delete it, or "
            "choose another output"
        )


def check_output(run: PlannedRun) -> None:
    """Raise InputError where the output folder holds another run or files of something else, or cannot be written."""
    output, place = run.config.output, storage.join(run.config.output, RUN)
    storage.require_writable(output)
    if storage.exists(place):
        found = storage.read_json(place)
        if not isinstance(found, dict):
            raise InputError(f"{place}: does not describe a run; choose another output")
        if found.get("identity") != run.identity:
            raise InputError(
                f"{output} holds another run ({_difference(found, run)}); choose another output, "
                "or repeat the command that made it"
            )
        _check_newest(run)
    elif {file.path for file in storage.list_files(output)} - {LEASE}:
        raise InputError(f"{output} is not empty and holds no run; choose another output")


def _check_newest(run: PlannedRun) -> None:
    """A checkpoint that is not this run's is refused before any worker starts; a damaged one is passed over later."""
    for place in checkpoint.committed(run.config.output)[:1]:
        with contextlib.suppress(DamagedError):
            state = checkpoint.read_state(place)
            require_same_run(state, run.task(), run.dataset, place)
            begun = _begun(state)
            if begun > run.config.epochs and finished(run) is None:
                raise InputError(
                    f"epochs = {run.config.epochs}, but the run in {run.config.output} has begun epoch {begun}; give "
                    f"epochs of at least {begun}"
                )


def _begun(state: Mapping[str, Any]) -> int:
    """Epochs that a checkpoint's run has begun."""
    cursor = state["progress"]["cursor"]
    return int(cursor["epoch"]) + (int(cursor["batch"]) > 0)


def at_least_begun(run: PlannedRun) -> PlannedRun:
    """The run with as many epochs as its newest whole checkpoint has begun, where these are more than it asks for."""
    for place in checkpoint.committed(run.config.output):
        with contextlib.suppress(DamagedError):
            if (begun := _begun(checkpoint.read_state(place))) > run.config.epochs:
                return replace(run, config=run.config.model_copy(update={"epochs": begun}))
            break
    return run


def claim(task: Mapping[str, Any]) -> None:
    """Mark the output folder as this run's; rank 0 does so when every check has passed, before it writes the rest."""
    config = TrainConfig.model_validate(task["config"])
    # First what makes the folder a run's: killed in between, it can be continued.
    storage.write_json(storage.join(config.output, RUN), {name: task[name] for name in task if name not in AT_WORK})
    storage.write_bytes(storage.join(config.output, "config.yaml"), dump_yaml(config).encode())


def _difference(found: dict[str, Any], run: PlannedRun) -> str:
    mine, theirs = plain(run.config), found.get("config", {})
    free = {
        name
        for name, field in TrainConfig.model_fields.items()
        if (field.json_schema_extra or {}) == {"identity": False}
    }
    names = [name for name in mine if name not in free and mine[name] != theirs.get(name)]
    if found.get("data") != run.dataset.fingerprint:
        return "trained on other data"
    return ", ".join(f"{name} = {theirs.get(name)!r}" for name in names) or "from another initial policy"


def finished(run: PlannedRun) -> dict[str, Any] | None:
    """The result of a run that has done its epochs, or was to end on an alarm and did; or None."""
    place = storage.join(run.config.output, RESULT)
    if storage.exists(place):
        result = storage.read_json(place)
        if isinstance(result, dict):
            alarmed = run.config.stop_on_alarm and result.get("stopped_on_alarm", False)
            if alarmed or int(result.get("epochs", 0)) >= run.config.epochs:
                return result
    return None
