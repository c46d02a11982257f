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
