"""What is counted of an arm's runs, of a plan that is carried out without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data import small_dataset
from tests.workflows.test_plan import STARS, result

from retilt.config import build
from retilt.config.reproduce import ReproduceConfig
from retilt.workflows.collect import Collector
from retilt.workflows.making import Maker
from retilt.workflows.plan import Plan
from retilt.workflows.presets import PRESETS
from retilt.workflows.scheduling import Schedule
from retilt.workflows.steps import Failed, Outcome, Step, Trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    users = small_dataset.sequences(60, 50, longest=30)
    return small_dataset.write(str(tmp_path_factory.mktemp("data")), users, 50, lanes=2, shards=[[30, 30]])


def timed(step: Step) -> Outcome:
    """Epochs of two seconds, in each of which 30 positions a second are trained."""
    found = result(step)
    if not isinstance(found, Trained):
        return found
    weights = {**found.weights, "seconds": 2.0}
    return Trained(tuple({**each, "seconds": 2.0, "positions_per_second": 30.0} for each in found.epochs), weights)


def carried_out(data: str, output: Path, **values: Any) -> Collector:
    config = build(ReproduceConfig, {"preset": "ml-100k", "output": str(output), **values})
    schedule = Schedule(Plan(Maker(config, PRESETS["ml-100k"], data, 4.5, 2.0), STARS))
    while steps := schedule.open():
        schedule.done[steps[0].key] = timed(steps[0])
    return Collector(schedule.plan, schedule.done, "python jobs/reproduce.py")


def test_every_run_of_an_arm_is_paid_for_and_the_sweep_is_not(data: str, tmp_path: Path) -> None:
    """Six trials of 1 epoch, two of them going on to 2 and one of these to 3; on two seeds 2 epochs, the best one."""
    arms = ["bc_continued", "exp_rsft", "exp_rsft_permuted", "dpo_paper", "tilt_item"]
    collector = carried_out(data, tmp_path, seeds=2, arms=arms, workers=3)
    epochs = {arm: len(list(collector._records(arm))) for arm in ("bc", *arms)}
    tuned = 6 + 2 * 1 + 1 + 2 * 2
    assert epochs == {
        "bc": 20 + 2 * 2, "bc_continued": tuned, "exp_rsft": tuned, "exp_rsft_permuted": 2 * 2,
        "dpo_paper": 3 + 2 * 3, "tilt_item": 0,
    }  # fmt: skip
    about = collector._about("exp_rsft_permuted")
    assert (about["positions"], about["seconds"]) == (4 * 2 * 30, 4 * 2 * 3)


def test_a_trial_that_went_on_in_the_sweep_counts_as_long_as_it_was_tuned(data: str, tmp_path: Path) -> None:
    """Found again after a sweep, a run that ended after one epoch has the four that it has had since."""
    collector = carried_out(data, tmp_path, arms=["exp_rsft"])
    before = len(list(collector._records("exp_rsft")))
    longest = {key.partition("@")[0]: each for key, each in collector.done.items() if isinstance(each, Trained)}
    for key, each in collector.done.items():
        if isinstance(each, Trained):
            again = longest[key.partition("@")[0]]
            collector.done[key] = again  # type: ignore[index]
    assert len(list(collector._records("exp_rsft"))) == before


def test_what_failed_on_the_way_to_what_was_done_is_not_missing(data: str, tmp_path: Path) -> None:
    collector = carried_out(data, tmp_path, arms=["exp_rsft"])
    before = collector.results()["not_run"]
    collector.done["seed-0/refit/bc@1"] = Failed("a worker was lost")  # type: ignore[index]
    assert collector.results()["not_run"] == before
    collector.done["seed-0/test/bc"] = Failed("a worker was lost")  # type: ignore[index]
    assert {"what": "seed-0/test/bc", "why": "a worker was lost"} in collector.results()["not_run"]


def test_every_trial_is_told_with_what_became_of_it(data: str, tmp_path: Path) -> None:
    """λ of .12, .69 and 4: validation chooses .69, which is no end of the grid; one trial is refused."""
    collector = carried_out(data, tmp_path, arms=["exp_rsft", "dpo"])
    collector.done["seed-0/select/exp_rsft/temperature-0.12-rate-1@1"] = Failed("too little")  # type: ignore[index]
    tried = {each["name"]: each for each in collector._tried("exp_rsft")}
    assert len(tried) == 6
    assert tried["temperature-0.12-rate-1"] == {
        "name": "temperature-0.12-rate-1", "epochs": 1, "failed": "too little",
    }  # fmt: skip
    assert tried["temperature-0.69-rate-1"] == {
        "name": "temperature-0.69-rate-1", "epochs": 3, "best_epoch": 2, "value": 2.0, "chosen": True,
        "end_of_grid": False,
    }  # fmt: skip
    assert "chosen" not in tried["temperature-4-rate-1"]
    assert all(each["curve"] for each in collector._tried("dpo"))
    assert list(collector._tried("tilt_item")) == []


def test_a_trial_that_goes_on_is_told_as_it_was_until_then(data: str, tmp_path: Path) -> None:
    collector = carried_out(data, tmp_path, arms=["exp_rsft"])
    for key in [key for key in collector.done if "/select/exp_rsft/" in key and not key.endswith("@1")]:
        del collector.done[key]  # type: ignore[attr-defined]
    tried = list(collector._tried("exp_rsft"))
    assert [each["epochs"] for each in tried] == [1] * 6
    assert not any("chosen" in each for each in tried)


def test_alarms_of_trials_that_lost_are_told_too(data: str, tmp_path: Path) -> None:
    """A tuned arm that stands for itself without an alarm would hide what one setting farther has done."""
    collector = carried_out(data, tmp_path, arms=["exp_rsft", "dpo", "dpo_paper"])
    change = {f"change/{name}{end}": 0.1 for name in ("reward_model", "ndcg@10") for end in ("", "/low", "/high")}

    def alarmed(key: str, *epochs: int) -> None:
        found = collector.done[key]
        assert isinstance(found, Trained)
        marks = [{"epoch": e, "alarm": "hacking", "judge/reward_model": 4.0, **change} for e in epochs]
        records = [
            {**each, **next((m for m in marks if m["epoch"] == e), {})} for e, each in enumerate(found.epochs, 1)
        ]
        collector.done[key] = Trained(tuple(records), found.weights)  # type: ignore[index]

    alarmed("seed-0/select/dpo/temperature-0.12-rate-1@1", 1)
    alarmed("seed-0/select/dpo_paper/labels-hard-rate-1@3", 1, 3)
    found = [(each["arm"], each["trial"], each["chosen"], each["epochs"]) for each in collector._alarms()]
    lost, fixed = found
    assert lost == ("dpo", "temperature-0.12-rate-1", False, [1])
    assert fixed[0::2] == ("dpo_paper", True)
    assert fixed[3] == [1, 3]


def test_reward_models_have_their_price(data: str, tmp_path: Path) -> None:
    """Five epochs under select, and five under refit."""
    assert carried_out(data, tmp_path, arms=["exp_rsft", "dpo"])._cost("judge")["seconds"] == 2 * 5 * 2.0
    assert carried_out(data, tmp_path, arms=["exp_rsft"])._cost("judge")["seconds"] == 0
    assert "reward_models" not in carried_out(data, tmp_path, arms=["exp_rsft"]).results()
