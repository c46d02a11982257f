"""Killed anywhere, a run ends with the same bits, and no example is missing or repeated."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.small_dataset import MODEL
from tests.faults.killing import Attempt, Kill, committed_steps, run

from retilt import artifact, storage
from retilt.config import TrainConfig, build
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import train_batches
from retilt.training import checkpoint
from retilt.training.run import finished, plan_run

STEPS = 20


def task(data: str, output: Path, **values: Any) -> dict[str, Any]:
    """4 epochs of 5 steps, Exp-RSFT with dropout, a sharded table, a checkpoint every other step."""
    settings = {
        "dataset": data, "output": str(output), "model": MODEL, "epochs": 4, "batch_users": 12, "dropout": 0.2,
        "table": "row_wise", "algorithm": {"name": "exp_rsft"}, "checkpoint": {"every_steps": 2}, **values,
    }  # fmt: skip
    return plan_run(build(TrainConfig, settings)).task()


def tensors(output: Path, place: str = "policy/last") -> dict[str, torch.Tensor]:
    """Every tensor of a policy, optimizer state included; rows of the files of several ranks joined."""
    found: dict[str, list[torch.Tensor]] = {}
    folder = storage.join(str(output), *place.split("/"))
    for file in storage.list_files(folder):
        if file.path.endswith(".safetensors"):
            kind = file.path.split("-0")[0].removesuffix(".safetensors")
            for name, value in artifact.load_tensors(storage.join(folder, file.path)).items():
                found.setdefault(f"{kind}:{name}", []).append(value)
    return {name: torch.cat(parts) if parts[0].ndim else parts[0] for name, parts in found.items()}


def require_equal(output: Path, reference: Path, *places: str) -> None:
    for place in places or ("policy/last", "policy/best"):
        mine, theirs = tensors(output, place), tensors(reference, place)
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def planned_examples(data: str, each: dict[str, Any], world: int) -> dict[int, list[int]]:
    """What the plan says that step s trains on, by rank."""
    config, found = TrainConfig.model_validate(each["config"]), list[list[int]]()
    dataset = Dataset.open(data)
    plan = Plan.of(dataset, config.batch_users, config.seed)
    for epoch in range(config.epochs):
        shares = [
            train_batches(dataset, plan, Cursor(epoch, 0), config.protocol, 20, rank, world) for rank in range(world)
        ]
        found += [[e for share in batch for e in share.example_B.tolist()] for batch in zip(*shares, strict=True)]
    return dict(enumerate(found))


def require_samples(data: str, each: dict[str, Any], attempts: list[Attempt]) -> None:
    """Every example of every committed step once, in the plan's order."""
    found = committed_steps(attempts)
    wanted = {world: planned_examples(data, each, world) for world in {a.world for a in attempts}}
    assert sorted(found) == list(range(STEPS))
    for step, examples in found.items():
        world = next(a.world for a in reversed(attempts) if step in a.steps)
        assert examples == wanted[world][step]


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    (attempt,) = run(task(data, folder / "run"), [2], folder / "log", [])
    assert sorted(attempt.steps) == list(range(STEPS))
    return folder / "run"


TIMES = ("seconds", "positions_per_second", "seconds_left", "checkpoint_seconds", "storage_retries")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def records(output: Path) -> Any:
    """The log, without what no two runs share."""
    return [without_times(json.loads(line)) for line in (output / "metrics.jsonl").read_text().splitlines()]


def state(output: Path) -> Any:
    """Where the published policies stand, without what no two runs share."""
    found = []
    for name in ("last", "best"):
        progress = without_times(checkpoint.read_state(str(output / "policy" / name))["progress"])
        found.append({**progress, "best": [{**each, "checkpoint": ""} for each in progress["best"]]})
    return found


def random_kills(number: int) -> list[list[Kill]]:
    """Runs that are killed once to three times each, at points drawn anew; the same at every call."""
    chance = random.Random(3)
    found = []
    for _ in range(number):
        kills = []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            point = chance.choice(("step", "stepped", "file", "filed", "file", "filed", "published", "delete"))
            rank = None if point in ("delete", "published") else chance.choice((0, 0, 1, None))
            # So many does every process pass; a later attempt may begin behind the step, and is then left alone.
            most = {"step": STEPS - 1, "stepped": STEPS - 1, "delete": 6, "published": 17, "file": 40, "filed": 40}
            last = 10 if rank == 1 and point in ("file", "filed") else most[point]
            kills.append(Kill(point, chance.randint(1, last), rank))  # type: ignore[arg-type]
        found.append(kills)
    return found


SOAK = [pytest.param(kills, marks=pytest.mark.soak) for kills in random_kills(20)[3:]]


@pytest.mark.parametrize("kills", [*random_kills(20)[:3], *SOAK], ids=str)
def test_a_killed_run_ends_with_the_same_bits(data: str, whole: Path, tmp_path: Path, kills: list[Kill]) -> None:
    each = task(data, tmp_path / "run")
    attempts = run(each, [2], tmp_path / "log", kills)
    assert attempts[0].killed
    require_equal(tmp_path / "run", whole)
    require_samples(data, each, attempts)
    assert records(tmp_path / "run") == records(whole)
    assert state(tmp_path / "run") == state(whole)
    whole_ones = {storage.name(place) for place in checkpoint.committed(str(tmp_path / "run"))}
    assert set(os.listdir(tmp_path / "run" / "checkpoints")) == whole_ones
    assert [name for _, _, names in os.walk(tmp_path / "run") for name in names if name.startswith(".")] == []
    assert finished(plan_run(TrainConfig.model_validate(each["config"]))) is not None


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_three_processes_end_with_the_same_bits(data: str, tmp_path: Path, placement: str) -> None:
    """Three ranks add up gradients in an order that hangs on how DDP has dealt them to buckets; two cannot tell."""
    run(task(data, tmp_path / "whole", table=placement), [3], tmp_path / "first", [])
    attempts = run(task(data, tmp_path / "run", table=placement), [3], tmp_path / "log", [Kill("step", 8, 1)])
    assert [min(each.steps) for each in attempts] != [0, 0]
    require_equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_elastic(data: str, tmp_path: Path, placement: str) -> None:
    """2 → 1 → 3 processes: the plan's examples in its order, the same global batches, losses to 1e-5."""
    values = {"table": placement, "dropout": 0.0, "log_every": 1, "table_learning_rate": 0.01}
    whole = run(task(data, tmp_path / "whole", **values), [1], tmp_path / "first", [])
    each = task(data, tmp_path / "run", **values)
    attempts = run(each, [2, 1, 3], tmp_path / "log", [Kill("step", 9, 1), Kill("step", 14, 0)])
    assert [attempt.world for attempt in attempts] == [2, 1, 3]
    assert all(min(attempt.steps) > 0 for attempt in attempts[1:])
    require_samples(data, each, attempts)
    found = committed_steps(attempts)
    assert {step: sorted(examples) for step, examples in found.items()} == {
        step: sorted(examples) for step, examples in whole[0].steps.items()
    }
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def losses(output: Path) -> list[float]:
    """Of each step, as the log keeps them with ``log_every=1``: none is missing and none is there twice."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "checkpoint_seconds" not in record]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    return [record["loss"] for record in steps]
