"""A λ search by Ray Tune over Ray Train on a real cluster: whole, found again, a trial killed, a trial that fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import small_dataset
from tests.faults.processes import command, tree

from retilt import storage
from retilt.cluster import session
from retilt.cluster.rungs import run_rung
from retilt.cluster.trial import RANKS, measured
from retilt.config import TrainConfig, build
from retilt.config.tune import TuneConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import tallies
from retilt.training import loop
from retilt.training.run import plan_run
from retilt.types import InputError
from retilt.workflows import search
from retilt.workflows.trials import Maker, Trial

MODEL = {"name": "hstu", "max_length": 8, "width": 4, "blocks": 1, "head_width": 4}
SMALL = {"batch_users": 12, "table": "replicated", "threads": 1, "epochs": 1, "replicates": 200}


class Silent:
    def progress(self, update: Mapping[str, Any]) -> None: ...

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session.connect(cpus=2):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` and ``bc``, a policy."""
    folder = tmp_path_factory.mktemp("search")
    users = small_dataset.sequences(60, 50, longest=30)
    data = small_dataset.write(str(folder / "data"), users, 50, lanes=2, shards=[[30, 30]])
    values = {"dataset": data, "output": str(folder / "bc"), "epochs": 1, "batch_users": 12, "table": "replicated"}
    loop.train(plan_run(build(TrainConfig, {**values, "model": MODEL})).task(), Silent())
    return folder


def config(place: Path, output: Path, **values: Any) -> TuneConfig:
    given = {"dataset": str(place / "data"), "initial": str(place / "bc"), "output": str(output)}
    return build(TuneConfig, {**given, **SMALL, "min_reward": 3.0, **values})


def test_a_search_ends_with_a_choice_and_is_found_again(
    cluster: None, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = config(place, tmp_path / "first", temperatures=[0.5, 2.0])
    found = search.run(one)
    done = {each["name"]: each for each in found["trials"]}
    assert {each["method"] for each in done.values()} == {"bc", "exp_rsft", "top_rated", "rsft"}
    assert {each["state"] for each in done.values()} == {"done"}
    choice = found["choice"]
    assert choice["temperature"] in (0.5, 2.0)
    assert set(choice["versus"]) == {"bc", "top_rated"}
    assert choice["deficit"]["value"] <= (choice["deficit"]["se"] or 0.0)
    assert done["bc-rate-0.001"]["ess"] == 1
    assert done["lambda-0.5-rate-0.001"]["ess"] < done["lambda-2-rate-0.001"]["ess"]
    assert done["lambda-0.5-rate-0.001"]["kl"] > 0
    assert found["cost"]["ratio"] == pytest.approx(5)
    assert {"search.json", "report.html", "report.md"} <= {each.name for each in (tmp_path / "first").iterdir()}
    assert storage.exists(found["policy"])
    written = json.loads((tmp_path / "first" / "search.json").read_text())
    assert written["choice"] == json.loads(json.dumps(choice))
    assert choice["trial"] in capsys.readouterr().out

    again = search.run(one)
    assert again["choice"] == choice
    assert "trial(s) to" not in capsys.readouterr().out

    # The night after, on the same data: nothing has drifted, so that only the choice is trained anew.
    next_night = search.run(config(place, tmp_path / "second", previous=str(tmp_path / "first")))
    assert next_night["drift"]["level"] == "none"
    assert [each["temperature"] for each in next_night["trials"]] == [choice["temperature"]]
    assert next_night["choice"]["temperature"] == choice["temperature"]

    # A trial killed with SIGKILL is repeated, to the same numbers; one without a finite loss fails, alone.
    # Adam's second step of 3e38 is beyond float32; weights that are infinite give a loss that is not a number.
    tasks = [_task(place, tmp_path / "killed", 0.5, rate) for rate in (1e-3, 3e38)]
    killed: list[int] = []

    def show(update: Mapping[str, Any]) -> None:
        if update.get("trial") == tasks[0]["name"] and "epoch" in update and not killed:
            drivers = [pid for pid in tree(os.getpid()) if "ImplicitFunc" in command(pid)]
            assert drivers
            killed.extend(drivers)
            for pid in drivers:
                os.kill(pid, signal.SIGKILL)

    failed = run_rung(tasks, at_once=2, stop_seconds=60, show=show)
    assert killed
    assert list(failed) == [tasks[1]["name"]]
    assert "not finite" in failed[tasks[1]["name"]]
    assert measured(tasks[1]["measured"]) is None
    name = "lambda-0.5-rate-0.001@1"
    sums = [tallies.read(str(tmp_path / each / "measured" / name / RANKS))[0].sums for each in ("first", "killed")]
    assert torch.equal(sums[0], sums[1])


def _task(place: Path, output: Path, temperature: float, rate: float) -> Mapping[str, Any]:
    one = config(place, output, numerics={"max_skipped": 1})
    make = Maker(one, Dataset.open(one.dataset).statistics("select"), 3.0)
    return make.task(Trial("exp_rsft", temperature, rate), 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperatures": [0.5, 0.0]}, "0 is no temperature"),
        ({"temperatures": [float("nan")]}, "nan is no temperature"),
        ({"temperatures": []}, "the list of temperatures is empty"),
        ({"temperatures": [1.0, 1.0]}, "listed twice"),
        ({"selection_metric": "train_loss"}, "cannot choose λ"),
        ({"selection_metric": "ndgc@10"}, "selection_metric = 'ndgc@10'"),
        ({"initial": None}, "missing key 'initial'"),
        ({"protocol": "refit"}, "use protocol=select"),
        ({"algorithm": "dpo"}, "not of dpo"),
        ({"algorithm": {"temperature": 2.0}}, "use temperatures="),
        ({"algorithm": {"rewards": "user_centred"}}, "give temperatures="),
        ({"learning_rates": [1e-3, 1e-3]}, "different numbers above 0"),
    ],
)
def test_bad_input(place: Path, tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config(place, tmp_path / "out", **values)


def test_a_folder_of_something_else_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match="holds something else"):
        search.run(config(place, place / "bc"))


def test_more_workers_than_the_cluster_has(cluster: None, place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the cluster has 2 CPUs"):
        search.run(config(place, tmp_path / "out", workers=2, threads=2, temperatures=[0.5, 1.0]))
    assert not (tmp_path / "out").exists()


def test_rewards_that_are_all_equal(place: Path, tmp_path: Path) -> None:
    users = [[(item, 3.0, time) for item, _, time in user] for user in small_dataset.sequences(12, 20, longest=10)]
    data = small_dataset.write(str(tmp_path / "data"), users, 20, lanes=2, shards=[[12]])
    with pytest.raises(InputError, match="every training event has the reward 3"):
        search.run(config(place, tmp_path / "out", dataset=data))


def test_a_dry_run_writes_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.run(config(place, tmp_path / "out"), dry_run=True) == {}
    assert "by effective sample size" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
