"""A λ search by Ray Tune over Ray Train on a real cluster: whole, found again, a trial killed, a trial that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.data import small_dataset
from tests.evaluation.reproduction import made_up
from tests.faults.processes import command, tree, until

from retilt import storage
from retilt.cluster import evaluate, session, trial
from retilt.cluster.evaluate_share import Share
from retilt.cluster.rungs import run_rung
from retilt.config import EvaluateConfig, TrainConfig, build
from retilt.config.tune import TuneConfig
from retilt.data.dataset import Dataset
from retilt.data.split import bounds
from retilt.evaluation import tallies
from retilt.evaluation.choice import Candidate, choose, value
from retilt.evaluation.statistics import Tally
from retilt.settings import identity_hash
from retilt.training import checkpoint, loop
from retilt.training.run import plan_run
from retilt.types import InputError, Stopped, TrainingError
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

    # Nor does it matter what runs beside what.
    monkeypatch.setattr(search, "Trials", Trials)
    apart = search.run(config(place, tmp_path / "apart", temperatures=[0.5, 2.0], concurrency=1))
    assert apart["choice"] == choice
    told = {"seconds", "curve"}  # how fast it went
    for ours, theirs in zip(found["trials"], apart["trials"], strict=True):
        assert {name: each for name, each in ours.items() if name not in told} == {
            name: each for name, each in theirs.items() if name not in told
        }


@pytest.mark.slow
def test_a_search_of_learning_rates_too_marks_what_fails_and_ends(
    cluster: None, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)  # places as most people write them
    here = {"dataset": "data", "initial": "bc"}
    values = {**here, "temperatures": [0.5], "learning_rates": [1e-3, 3e38], "numerics": {"max_skipped": 1}}
    found = search.run(config(place, tmp_path / "out", **values))
    assert found["dataset"]["uri"] == str(place / "data")
    states = {(each["method"], each["learning_rate"]): each for each in found["trials"]}
    assert set(states) == {
        (method, rate) for method in ("bc", "exp_rsft", "top_rated", "rsft") for rate in (1e-3, 3e38)
    }
    for (_, rate), each in states.items():
        assert each["state"] == ("done" if rate == 1e-3 else "failed")
        assert each["reason"] is None if rate == 1e-3 else "not finite" in each["reason"]
        assert (each["positions"] > 0) == (rate == 1e-3)
    assert (found["choice"]["temperature"], found["choice"]["learning_rate"]) == (0.5, 1e-3)
    assert "not finite" in (tmp_path / "out" / "report.md").read_text()


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
    until(lambda: not any("RayTrainWorker" in command(pid) for pid in tree(os.getpid())), 20, "no worker is left")
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


def test_what_is_held_out_for_the_test_does_not_touch_a_search(place: Path, tmp_path: Path) -> None:
    """On data that differ in their test events alone, all is the same to the last bit."""
    users = small_dataset.sequences(60, 50, longest=30)
    others = [list(user) for user in users]
    for user in others:
        for at in range(bounds(len(user), 2).validation, len(user)):
            item, reward, time = user[at]
            user[at] = (50 - item + 1, 6 - reward, time)
    there = small_dataset.write(str(tmp_path / "data"), others, 50, lanes=2, shards=[[30, 30]])
    seen: list[tuple[Any, ...]] = []
    for data in (str(place / "data"), there):
        output, opened = tmp_path / f"out-{len(seen)}", Dataset.open(data)
        one = config(place, output, dataset=data)
        proposal = propose(one, opened, opened.statistics("select"))
        tallied = []
        for each in (Trial("exp_rsft", 0.5, 1e-3), Trial("top_rated", None, 1e-3)):
            task = Maker(one, opened.statistics("select"), 3.0).task(each, 1)
            training = {**plan_run(build(TrainConfig, task["training"])).task(), "replicates": 200}
            trial.work({"training": training, "task": task}, Silent())
            tallied += [
                tallies.read(storage.join(task["measured"], name))[0].sums for name in (trial.RANKS, trial.EXACT)
            ]
        seen.append((opened.fingerprint, proposal, tallied))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] == seen[1][1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen[0][2], seen[1][2], strict=True))


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


def proposed() -> Proposal:
    return Proposal("as given", [1.0], [1e-3], [])


def _earlier(place: Path, folder: Path, **changes: Any) -> str:
    """What an earlier search leaves that a later one reads."""
    known = asdict(snapshot(Dataset.open(str(place / "data"))))
    chosen_for = facts(config(place, folder), proposed(), Dataset.open(str(place / "data")), "")["chosen_for"]
    values = {"identity": "", "searched": {**known, **changes}, "chosen_for": chosen_for}
    storage.write_json(str(folder / "facts.json"), values)
    storage.write_json(str(folder / "search.json"), {"choice": {"temperature": 1.0, "learning_rate": 3e-4}})
    return str(folder)


def test_an_earlier_choice_is_taken_after_no_drift_and_searched_around_after_little(
    place: Path, tmp_path: Path
) -> None:
    data = Dataset.open(str(place / "data"))
    rewards = data.statistics("select")

    def after(name: str, **changes: Any) -> Proposal:
        previous = _earlier(place, tmp_path / name, **changes)
        return propose(config(place, tmp_path / "out", previous=previous), data, rewards)

    same = after("same")
    assert (same.settled, same.temperatures, same.rates) == (True, [1.0], [3e-4])
    little = after("little", users=int(data.users / 1.4), events=int(data.events / 1.4))
    assert little.drift is not None
    assert (little.drift["level"], little.settled, little.temperatures) == ("little", False, [0.667, 1.0, 1.5])
    assert little.rates == [3e-4]  # the one at which λ was chosen
    much = after("much", users=data.users // 3, events=data.events // 3)
    assert much.drift is not None
    assert (much.drift["level"], much.settled, len(much.temperatures)) == ("much", False, 8)
    # A search that takes an earlier choice hands on what that was made on, though its own data differ a little.
    grown = after("grown", users=data.users - 1, events=data.events - 20)
    assert grown.settled
    handed_on = facts(config(place, tmp_path / "out"), grown, data, "")["searched"]
    assert (handed_on["users"], handed_on["events"]) == (data.users - 1, data.events - 20)
    with pytest.raises(InputError, match="no finished search there"):
        propose(config(place, tmp_path / "out", previous=str(place)), data, rewards)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"selection_metric": "mrr"}, r"something else \(selection_metric = ndcg@10\)"),
        ({"min_reward": 4.0}, r"something else \(min_reward = 3.0\)"),
        ({"algorithm": {"rewards": "rank"}, "temperatures": [1.0]}, r"something else \(algorithm.rewards = raw\)"),
    ],
)
def test_an_earlier_choice_by_something_else_is_refused(
    place: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    data = Dataset.open(str(place / "data"))
    one = config(place, tmp_path / "out", previous=_earlier(place, tmp_path / "earlier"), **values)
    with pytest.raises(InputError, match=said):
        propose(one, data, data.statistics("select"))


def test_another_policy_at_the_same_place_is_another_search(place: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "out", config(place, tmp_path / "out", temperatures=[1.0])
    data, initial = Dataset.open(one.dataset), tmp_path / "initial"
    shutil.copytree(place / "bc", initial)
    one = one.model_copy(update={"initial": str(initial)})
    policy = checkpoint.fingerprint(checkpoint.find(str(initial)))
    identity = identity_hash(one, dataset=data.fingerprint, initial=policy)
    storage.write_json(str(out / "facts.json"), facts(one, proposed(), data, identity))
    search.run(one, dry_run=True)  # moved, it is the same
    values = {"dataset": one.dataset, "output": str(initial), "epochs": 2, "batch_users": 12, "table": "replicated"}
    loop.train(plan_run(build(TrainConfig, {**values, "model": MODEL})).task(), Silent())
    with pytest.raises(InputError, match="another initial policy; choose another output"):
        search.run(one, dry_run=True)


def test_where_the_chosen_trial_fails_on_the_way_the_next_choice_is_trained_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(place, tmp_path / "out", temperatures=[0.5, 2.0], epochs=9)
    data = Dataset.open(one.dataset)
    made = search.Search(
        one, data, Proposal("as given", [0.5, 2.0], [1e-3], []), Maker(one, data.statistics("select"), 3.0)
    )
    strength = {0.5: 1.2, 2.0: 1.5}
    failing = {2.0}

    def rung(epochs: int, trials: list[Trial]) -> list[Trial]:
        made.failures |= {each: "the loss is not finite" for each in trials if each.temperature in failing}
        return [each for each in trials if each not in made.failures]

    monkeypatch.setattr(made, "_rung", rung)
    monkeypatch.setattr(made, "tally", lambda trial: made_up.tally(strength[trial.temperature], 0))
    decided, chosen = made._trained_on(made.lambdas)
    assert decided is not None
    assert (chosen.temperature, decided.best) == (0.5, chosen.name)
    failing.add(0.5)
    with pytest.raises(TrainingError, match=r"no λ could be trained .*the loss is not finite"):
        made._trained_on(made.lambdas)


@pytest.mark.slow
def test_halving_goes_on_with_the_better_third_and_takes_more_temperatures(
    cluster: None, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rungs of 1, 3 and 9 epochs; before, with three λ, of 3 and 9."""
    one = config(place, tmp_path / "out", temperatures=[0.5, 2.0], epochs=9)
    first = search.run(one)
    assert [each["epochs"] for each in first["protocol"]["rungs"]] == [3, 9]
    capsys.readouterr()
    found = search.run(one.model_copy(update={"temperatures": [0.3, 0.5, 1.0, 2.0]}))
    assert {each["name"]: each["reason"] for each in found["trials"] if each["state"] == "failed"} == {}
    epochs, trials = zip(*((each["epochs"], each["trials"]) for each in found["protocol"]["rungs"]), strict=True)
    assert (epochs, trials) == ((1, 3, 9), (7, 4, 1))
    reached = {each["name"]: each for each in found["trials"]}

    def after(name: str, epochs: int) -> Tally:
        return tallies.read(str(tmp_path / "out" / "measured" / f"{name}@{epochs}" / trial.RANKS))[0]

    names = [name for name, each in reached.items() if each["method"] == "exp_rsft"]
    score = {name: value(after(name, 1), "high_reward", "ndcg@10") for name in names}
    best = sorted(names, key=lambda name: (-score[name], -reached[name]["temperature"]))[:2]
    assert {name for name in names if reached[name]["rung"] >= 1} == set(best)
    candidates = [Candidate(name, reached[name]["temperature"], after(name, 3)) for name in best]
    assert found["choice"]["trial"] == choose(candidates, "high_reward", "ndcg@10").chosen
    assert reached[found["choice"]["trial"]]["epochs"] == 9
    # What had gone further before was measured as it was then: the tally of the best of its first epochs.
    for name in ("lambda-0.5-rate-0.001", "lambda-2-rate-0.001", "bc-rate-0.001"):
        kept = tmp_path / "out" / "trials" / name / "validation" / "epoch-1"
        assert torch.equal(after(name, 1).sums, tallies.read(str(kept))[0].sums)


def _task(place: Path, output: Path, temperature: float, rate: float, epochs: int = 1) -> Mapping[str, Any]:
    one = config(place, output, numerics={"max_skipped": 1}, log_every=1)
    make = Maker(one, Dataset.open(one.dataset).statistics("select"), 3.0)
    return make.task(Trial("exp_rsft", temperature, rate), epochs)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperatures": [0.5, 0.0]}, "0 is no temperature"),
        ({"temperatures": [float("nan")]}, "nan is no temperature"),
        ({"temperatures": ["nan"]}, "'nan' is no temperature: λ is a finite number above 0"),
        ({"temperatures": 0.5}, "temperatures = 0.5: give auto, or a list of numbers"),
        ({"temperatures": "fast"}, "temperatures = fast: give auto, or a list"),
        ({"workers": [1, 2]}, "each needs a number of its own"),
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
