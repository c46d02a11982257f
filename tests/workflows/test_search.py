"""A λ search by Ray Tune over Ray Train on a real cluster: whole, found again, a trial killed, a trial that fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.data import small_dataset
from tests.faults.processes import command, tree

from retilt import storage
from retilt.cluster import evaluate, session, trial
from retilt.cluster.evaluate_share import Share
from retilt.cluster.rungs import run_rung
from retilt.config import EvaluateConfig, TrainConfig, build
from retilt.config.tune import TuneConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import tallies
from retilt.training import checkpoint, loop
from retilt.training.run import plan_run
from retilt.types import InputError, Stopped
from retilt.workflows import search
from retilt.workflows.proposing import Proposal, facts, propose, snapshot
from retilt.workflows.trials import Maker, Trial
from retilt.workflows.watching import Trials

MODEL = {"name": "hstu", "max_length": 8, "width": 4, "blocks": 1, "head_width": 4}
SMALL = {"batch_users": 12, "table": "replicated", "threads": 1, "epochs": 1, "replicates": 200}


class Silent:
    def progress(self, update: Mapping[str, Any]) -> None: ...

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session.connect(cpus=2, dashboard=False):
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


class Killing(Trials):
    """Kills the process of each trial at work when the first of them tells of its training, with SIGKILL."""

    killed: ClassVar[list[int]] = []

    def show(self, update: Mapping[str, Any]) -> None:
        super().show(update)
        if update.get("trial") == "lambda-0.5-rate-0.001" and "epoch" in update and not self.killed:
            self.killed.extend(pid for pid in tree(os.getpid()) if "ImplicitFunc" in command(pid))
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_search_ends_with_a_choice_whoever_is_killed_and_is_found_again(
    cluster: None, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(place, tmp_path / "out", temperatures=[0.5, 2.0])
    monkeypatch.setattr(search, "Trials", Killing)
    found = search.run(one)
    assert Killing.killed
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
    assert {"search.json", "report.html", "report.md"} <= {each.name for each in (tmp_path / "out").iterdir()}
    assert storage.exists(found["policy"])
    written = json.loads((tmp_path / "out" / "search.json").read_text())
    assert written["choice"] == json.loads(json.dumps(choice))
    shown = capsys.readouterr().out
    assert choice["trial"] in shown
    assert "its process ended" in shown

    # What was killed and repeated has the numbers of a trial that nobody disturbed.
    alone = _task(place, tmp_path / "alone", 0.5, 1e-3)
    training = {**plan_run(build(TrainConfig, alone["training"])).task(), "replicates": 200}
    trial.work({"training": training, "task": alone}, Silent())
    name = "lambda-0.5-rate-0.001@1"
    sums = [tallies.read(str(tmp_path / each / "measured" / name / trial.RANKS))[0].sums for each in ("out", "alone")]
    assert torch.equal(sums[0], sums[1])
    # Its tally, which the run's validation made, is what evaluate finds of the policy that it published.
    ((ranked, _),) = (
        Share(evaluate.plan(build(EvaluateConfig, alone["evaluation"])).arguments).measure(Silent()).values()
    )
    torch.testing.assert_close(sums[1], ranked.sums, rtol=1e-12, atol=1e-12)

    again = search.run(one)
    assert again["choice"] == choice
    assert "trial(s) to" not in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_ends_a_rung_with_checkpoints_and_begins_no_further_trial(
    cluster: None, place: Path, tmp_path: Path
) -> None:
    tasks = [_task(place, tmp_path, each, 1e-3, epochs=4) for each in (0.5, 1.0, 2.0, 4.0)]
    began: set[str] = set()

    def show(update: Mapping[str, Any]) -> None:
        if "trial" in update and not update.get("ended"):
            began.add(update["trial"])
        if "epoch" in update and not stopped:
            stopped.append(update["trial"])
            os.kill(os.getpid(), signal.SIGTERM)

    stopped: list[str] = []
    with pytest.raises(Stopped, match="the same command continues"):
        run_rung(tasks, at_once=1, stop_seconds=60, show=show)
    assert began == {tasks[0]["name"]}
    assert checkpoint.committed(tasks[0]["training"]["output"])
    assert trial.measured(tasks[0]["measured"]) is None

    assert run_rung(tasks[:1], at_once=1, stop_seconds=60, show=lambda _: None) == {}
    alone = _task(place, tmp_path / "alone", 0.5, 1e-3, epochs=4)
    training = {**plan_run(build(TrainConfig, alone["training"])).task(), "replicates": 200}
    trial.work({"training": training, "task": alone}, Silent())
    for name in (trial.RANKS, trial.EXACT):
        both = [tallies.read(storage.join(task["measured"], name))[0].sums for task in (tasks[0], alone)]
        assert torch.equal(both[0], both[1])


def test_a_trial_without_a_finite_loss_fails_with_its_reason(cluster: None, place: Path, tmp_path: Path) -> None:
    # Adam's second step of 3e38 is beyond float32; weights that are infinite give a loss that is not a number.
    task = _task(place, tmp_path, 0.5, 3e38)
    failed = run_rung([task], at_once=1, stop_seconds=60, show=lambda _: None)
    assert list(failed) == [task["name"]]
    assert "not finite" in failed[task["name"]]
    assert trial.measured(task["measured"]) is None


@pytest.mark.soak
def test_the_night_after_only_the_choice_is_trained(cluster: None, place: Path, tmp_path: Path) -> None:
    first = search.run(config(place, tmp_path / "first", temperatures=[0.5, 2.0]))
    found = search.run(config(place, tmp_path / "second", previous=str(tmp_path / "first")))
    assert found["drift"]["level"] == "none"
    assert [each["temperature"] for each in found["trials"]] == [first["choice"]["temperature"]]
    assert found["choice"]["temperature"] == first["choice"]["temperature"]


def _earlier(place: Path, folder: Path, **changes: Any) -> str:
    """What an earlier search leaves that a later one reads."""
    known = asdict(snapshot(Dataset.open(str(place / "data"))))
    storage.write_json(str(folder / "facts.json"), {"identity": "", "searched": {**known, **changes}})
    storage.write_json(str(folder / "search.json"), {"choice": {"temperature": 1.0, "learning_rate": 3e-4}})
    return str(folder)


def test_an_earlier_choice_is_taken_after_no_drift_and_searched_around_after_little(
    place: Path, tmp_path: Path
) -> None:
    data = Dataset.open(str(place / "data"))
    rewards = data.statistics("select")

    def proposed(name: str, **changes: Any) -> Proposal:
        previous = _earlier(place, tmp_path / name, **changes)
        return propose(config(place, tmp_path / "out", previous=previous), data, rewards)

    same = proposed("same")
    assert (same.settled, same.temperatures, same.rate) == (True, [1.0], 3e-4)
    little = proposed("little", users=int(data.users / 1.4), events=int(data.events / 1.4))
    assert little.drift is not None
    assert (little.drift["level"], little.settled, little.temperatures) == ("little", False, [0.667, 1.0, 1.5])
    much = proposed("much", users=data.users // 3, events=data.events // 3)
    assert much.drift is not None
    assert (much.drift["level"], much.settled, len(much.temperatures)) == ("much", False, 8)
    # A search that takes an earlier choice hands on what that was made on.
    assert facts(same, data, "")["searched"] == asdict(snapshot(data))
    with pytest.raises(InputError, match="no finished search there"):
        propose(config(place, tmp_path / "out", previous=str(place)), data, rewards)


def _task(place: Path, output: Path, temperature: float, rate: float, epochs: int = 1) -> Mapping[str, Any]:
    one = config(place, output, numerics={"max_skipped": 1}, log_every=1)
    make = Maker(one, Dataset.open(one.dataset).statistics("select"), 3.0)
    return make.task(Trial("exp_rsft", temperature, rate), epochs)


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
    data = small_dataset.write(str(tmp_path / "data"), users, 20, lanes=2, shards=[[6, 6]])
    with pytest.raises(InputError, match="every training event has the reward 3"):
        search.run(config(place, tmp_path / "out", dataset=data))


def test_a_dry_run_writes_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.run(config(place, tmp_path / "out"), dry_run=True) == {}
    assert "by effective sample size" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
