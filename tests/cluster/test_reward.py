"""jobs/train_reward.py as a whole: a reward model, its audit beside predictors that know no sequence, found again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data import small_dataset
from tests.training.test_loop import alone, planned

from retilt.cluster import reward, session
from retilt.config import TrainConfig, build

pytestmark = pytest.mark.slow
MODELS = {"paper": "reward_model", "strong": "strong"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session.connect(cpus=2, dashboard=False):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` and ``bc``."""
    folder = tmp_path_factory.mktemp("reward")
    users = small_dataset.sequences(60, 50, longest=30)
    data = small_dataset.write(str(folder / "data"), users, 50, lanes=2, shards=[[30, 30]])
    alone(planned(data, folder / "bc", epochs=1))
    return folder


def config(place: Path, output: Path, variant: str, workers: int) -> TrainConfig:
    values: dict[str, Any] = {"dataset": str(place / "data"), "initial": str(place / "bc"), "output": str(output)}
    algorithm = {"name": "reward_model", "variant": variant}
    given = {"epochs": 1, "batch_users": 12, "table": "row_wise", "threads": 1, "workers": workers}
    return build(TrainConfig, {**values, **given, "algorithm": algorithm})


@pytest.mark.parametrize("variant", MODELS)
def test_a_reward_model_is_trained_and_audited_alike_on_one_worker_and_two(
    cluster: None, place: Path, tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {workers: reward.run(config(place, tmp_path / str(workers), variant, workers)) for workers in (1, 2)}
    written = {workers: json.loads((tmp_path / str(workers) / reward.AUDIT).read_text()) for workers in found}
    for workers, each in written.items():
        assert each["audit"] == json.loads(json.dumps(found[workers]["audit"]))
        assert each["part"] == "test"
        assert MODELS[variant] in json.dumps(each["audit"])
    ours, theirs = (flat(written[workers]["audit"]) for workers in (1, 2))
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    # Rewards that are drawn from nothing: no sequence tells more than their mean, and that is said aloud.
    shown = capsys.readouterr().out
    assert shown.count("WARNING") == sum(len(each["warnings"]) for each in written.values())

    again = reward.run(config(place, tmp_path / "1", variant, 1))
    assert again["audit"] == written[1]["audit"]
    assert "epoch 1/1 done" not in capsys.readouterr().out


def flat(values: Any, name: str = "") -> dict[str, float]:
    """Every number in there by where it stands."""
    if isinstance(values, dict):
        return {key: each for inner in values for key, each in flat(values[inner], f"{name}/{inner}").items()}
    if isinstance(values, list):
        return {key: each for at, one in enumerate(values) for key, each in flat(one, f"{name}/{at}").items()}
    return {name: float(values)} if isinstance(values, int | float) else {}
