"""What a run is before any worker starts: inputs checked, defaults resolved, the output folder claimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retilt import storage
from retilt.config import TrainConfig, config_hash, dump_yaml, identity_hash, plain
from retilt.data.dataset import Dataset
from retilt.evaluation.lineage import check_lineage
from retilt.models.hstu import HSTU
from retilt.training import checkpoint
from retilt.types import InputError

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


def plan_run(config: TrainConfig) -> PlannedRun:
    """Check the inputs of a run and resolve what depends on them.

    Raises:
        InputError: data set or initial policy absent or damaged, other vocabulary, other model, trained on the part
            that chooses the epoch, or more workers than lanes.
    """
    dataset = Dataset.open(config.dataset)
    check_lanes(dataset, config.workers, config.batch_users)
    lineage: list[dict[str, Any]] = []
    model, initial, warning, start = config.model, None, None, None
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
        }
    )
    lineage.append(dataset.lineage(config.protocol, storage.name(config.output)))
    identity = identity_hash(config, dataset=dataset.fingerprint, initial=start)
    return PlannedRun(config, lineage, identity, dataset, warning)


def check_lanes(dataset: Dataset, workers: int, batch_users: int) -> None:
    """Raise InputError where a data set cannot be shared by so many workers, or in batches of so few users."""
    for key, value in (("workers", workers), ("batch_users", batch_users)):
        if (key == "workers" and value > dataset.lanes) or (key == "batch_users" and value < dataset.lanes):
            bound = "most" if key == "workers" else "least"
            raise InputError(f"{key} = {value}, but the data set has {dataset.lanes} lanes; use at {bound} that many")


def _initial_model(config: TrainConfig, state: dict[str, Any], initial: str) -> HSTU:
    model = HSTU.model_validate(state["model"])
    if config.model is not None and config.model != model:
        raise InputError(
            f"model differs from that of the initial policy {initial} ({state['model']}); leave model out: "
            "it is the policy's"
        )
    return model


def require_vocabulary(state: dict[str, Any], dataset: Dataset, policy: str) -> None:
    """Raise InputError where a policy and a data set number the items differently."""
    if state["vocabulary_sha256"] != dataset.vocabulary_sha256:
        raise InputError(
            f"{policy} was trained with another vocabulary ({state['items']:,} items) than the data set {dataset.uri} "
            f"({dataset.items:,} items); use the data set that the policy was trained on"
        )


def claim(run: PlannedRun) -> None:
    """Mark the output folder as this run's before anything is written there.

    Raises:
        InputError: the folder holds another run, or files of something else.
    """
    output, place = run.config.output, storage.join(run.config.output, RUN)
    if storage.exists(place):
        found = storage.read_json(place)
        if found.get("identity") != run.identity:
            raise InputError(
                f"{output} holds another run ({_difference(found, run)}); choose another output, "
                "or repeat the command that made it"
            )
        return
    if storage.list_files(output):
        raise InputError(f"{output} is not empty and holds no run; choose another output")
    body = {
        "identity": run.identity,
        "data": run.dataset.fingerprint,
        "config": plain(run.config),
        "config_sha256": config_hash(run.config),
        "lineage": run.lineage,
    }
    storage.write_bytes(storage.join(output, "config.yaml"), dump_yaml(run.config).encode())
    storage.write_json(place, body)


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
        if isinstance(result, dict) and result["epochs"] >= run.config.epochs:
            return result
    return None
