"""What a run is before any worker starts: inputs checked, defaults resolved, the output folder claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retilt import storage
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
        InputError: data set or initial policy absent or damaged, other vocabulary, other model, trained on the part
            that chooses the epoch, more workers than lanes or than the item table can be sharded over, or rewards that
            the algorithm refuses.
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
    initial, warning, start = None, None, None
    if config.initial is not None:
        initial = checkpoint.find(storage.absolute(config.initial))
        state = checkpoint.read_state(initial)
        model = _initial_model(config, state, initial)
        require_vocabulary(state, dataset, initial)
        lineage, start = list(state["lineage"]), checkpoint.fingerprint(initial)
        if config.protocol == "select":
            warning = check_lineage(lineage, dataset.manifest, "validation")
    config = config.model_copy(
        update={
            "dataset": storage.absolute(config.dataset),
            "output": storage.absolute(config.output),
            "initial": initial,
            "model": model,
            "softmax": config.softmax_for(dataset.items, choose_device(config.device).type == "cuda"),
        }
    )
    lineage.append(dataset.lineage(config.protocol, storage.name(config.output)))
    identity = identity_hash(config, dataset=dataset.fingerprint, initial=start)
    return PlannedRun(config, lineage, identity, dataset, warning)


def _initial_model(config: TrainConfig, state: dict[str, Any], initial: str) -> Model:
    model = model_of(state, initial)
    if config.model is not None and config.model != model:
        raise InputError(
            f"model differs from that of the initial policy {initial} ({state['model']}); leave model out: "
            "it is the policy's"
        )
    return model


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
            cursor = state["progress"]["cursor"]
            begun = int(cursor["epoch"]) + (int(cursor["batch"]) > 0)
            if begun > run.config.epochs and finished(run) is None:
                raise InputError(
                    f"epochs = {run.config.epochs}, but the run in {run.config.output} has begun epoch {begun}; give "
                    f"epochs of at least {begun}"
                )


def claim(task: Mapping[str, Any]) -> None:
    """Mark the output folder as this run's; rank 0 does so when every check has passed, before it writes the rest."""
    config = TrainConfig.model_validate(task["config"])
    # First what makes the folder a run's: killed in between, it can be continued.
    storage.write_json(storage.join(config.output, RUN), {name: task[name] for name in task if name != "lease"})
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
    """The result of a run that has done its epochs, or None."""
    place = storage.join(run.config.output, RESULT)
    if storage.exists(place):
        result = storage.read_json(place)
        if isinstance(result, dict) and int(result.get("epochs", 0)) >= run.config.epochs:
            return result
    return None
