"""A reproduction on lanes of a real cluster: whole, found again, and where an arm fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.data import small_dataset
from tests.workflows.test_theory import SCALE

from retilt.cluster import session
from retilt.config import build
from retilt.config.reproduce import ReproduceConfig
from retilt.data.dataset import Dataset
from retilt.evaluation.reproduction.tables import LISTS
from retilt.types import InputError, StorageError
from retilt.workflows import reproduce, theory
from retilt.workflows.presets import PRESETS


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session.connect(cpus=2, dashboard=False):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    users = small_dataset.sequences(60, 50, longest=30)
    return small_dataset.write(str(tmp_path_factory.mktemp("data")), users, 50, lanes=2, shards=[[30, 30]])


def config(output: Path, **values: Any) -> ReproduceConfig:
    small = {"pretraining_epochs": 1, "epochs": 1, "trials": 4, "replicates": 200, "sweep": False}
    return build(ReproduceConfig, {"preset": "ml-100k", "output": str(output), **small, **values})


def test_a_reproduction_ends_with_a_report_and_is_found_again(
    cluster: None, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = config(tmp_path, dataset=data, arms=["exp_rsft", "exp_rsft_advantage"])
    found = reproduce.run(one)
    assert set(found["arms"]) == {"bc", *(one.arms or ())}
    assert found["arms"]["exp_rsft"]["test"]["high_reward"]["ndcg@10"]["versus"]["bc"]["low"] is not None
    assert set(found["arms"]["exp_rsft"]["lists"]) == set(LISTS)
    assert found["not_run"] == []
    assert found["protocol"]["headline"] == "high_reward"
    new = Dataset.open(str(tmp_path / "seed-0" / "data" / "exp_rsft_advantage")).statistics("refit")
    assert new["reward_min"] < 0 < new["reward_max"]
    shown = capsys.readouterr().out
    assert "seed-0/test/exp_rsft done" in shown
    assert shown.endswith("\n".join(reproduce.said(one, found)) + "\n")
    written = json.loads((tmp_path / "results.json").read_text())
    assert {"report.html", "report.md"} <= {file.name for file in tmp_path.iterdir()}
    assert written["arms"] == json.loads(json.dumps(found["arms"]))

    again = reproduce.run(one)
    assert again["arms"] == found["arms"]
    assert "steps are" not in capsys.readouterr().out


def test_another_reproduction_is_refused(tmp_path: Path, data: str) -> None:
    with reproduce._claimed(config(tmp_path, dataset=data)):
        pass
    with pytest.raises(InputError, match=r"holds another reproduction \(trials = 4\); choose another output"):
        reproduce.run(config(tmp_path, dataset=data, trials=6))


def test_a_preset_without_its_data_names_source_and_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETILT_DATA_MIRROR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"ml-1m could not be fetched .*RETILT_DATA_MIRROR"):
        reproduce.run(config(tmp_path / "out", preset="ml-1m"))
    assert not (tmp_path / "out").exists()


def test_floored_times_belong_to_the_preparation(tmp_path: Path, data: str) -> None:
    with pytest.raises(InputError, match="prepare it with time_floor=15, or leave one out"):
        config(tmp_path / "out", dataset=data, floor_times=15)


def test_rewards_that_are_all_equal_are_refused_before_anything_starts(tmp_path: Path) -> None:
    users = [[(item, 3.0, time) for item, _, time in user] for user in small_dataset.sequences(12, 20, longest=10)]
    same = small_dataset.write(str(tmp_path / "data"), users, 20, lanes=2, shards=[[6, 6]])
    with pytest.raises(InputError, match="every training event has the reward 3, so there is nothing to learn"):
        reproduce.run(config(tmp_path / "out", dataset=same))


def test_rewards_of_another_scale_than_the_presets_are_refused(tmp_path: Path) -> None:
    users = [[(item, reward / 10, time) for item, reward, time in user] for user in small_dataset.sequences(12, 20)]
    small = small_dataset.write(str(tmp_path / "data"), users, 20, lanes=2, shards=[[6, 6]])
    with pytest.raises(InputError, match=r"has a reward of 4.5 or more, .* the largest is 0.5. Use preset=watch_time"):
        reproduce.run(config(tmp_path / "out", dataset=small))


@pytest.mark.slow
def test_arms_that_come_later_bring_reward_models_which_score_what_was_there(
    cluster: None, data: str, tmp_path: Path
) -> None:
    """Everything that needs another: opponents, tilts, derived data, the sweep and its shifts, on two seeds."""
    before = reproduce.run(config(tmp_path, dataset=data, arms=["exp_rsft"]))
    assert "avg_reward" not in before["arms"]["exp_rsft"]
    assert "alarms" not in before
    arms = ["exp_rsft", "rsft", "dpo", "tilt_rm", "exp_rsft_item_mean", "exp_rsft_trajectory"]
    found = reproduce.run(config(tmp_path, dataset=data, arms=arms, seeds=2, sweep=True))
    assert found["not_run"] == []
    trained = [arm for arm in ("bc", *arms) if arm != "tilt_rm"]
    for arm in trained:
        scores = found["arms"][arm]["avg_reward"]
        assert set(scores) == {"training", "judge", "entropy", "kl"}
        assert (
            scores["kl"]["seeds"] == pytest.approx([0.0, 0.0], abs=1e-9)
            if arm == "bc"
            else min(scores["kl"]["seeds"]) > 0
        )
        assert len(found["arms"][arm]["test"]["high_reward"]["ndcg@10"]["seeds"]) == 2
    start, after = found["arms"]["dpo"]["curve"]
    assert (start["epoch"], start["kl"], after["kl"] > 0) == (0, 0.0, True)
    assert abs(start["avg_reward"] - after["avg_reward"]) < 1
    assert isinstance(found["alarms"], list)
    assert {each["kind"] for each in found["shifts"]} == {"noise", "thinned"}
    assert all(set(each["chosen"]) == {"0", "1"} for each in found["shifts"])
    assert {each["temperature"] for each in found["lambda"]} == {each for each, _ in found["shifts"][0]["grid"]}
    claims = {
        each["claim"]: each["verdict"] for each in json.loads((tmp_path / "results.json").read_text())["verdicts"]
    }
    assert claims["beats_bc"] != "not run"
    assert claims["noise_raises_lambda"] != "not run"

    # What was tested without the reward models is tested again, what was trained is not.
    log = tmp_path / "seed-0" / "refit" / "exp_rsft" / "metrics.jsonl"
    assert len([line for line in log.read_text().splitlines() if '"seconds"' in line]) == 1


@pytest.mark.slow
def test_watch_time_is_simulated_and_reported_on_the_trajectories_of_a_high_return(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = {"preset": "watch_time", "users": 150, "items": 100, "events": 6_000}
    monkeypatch.setitem(PRESETS, "watch_time", replace(PRESETS["watch_time"], simulation=simulation))
    found = reproduce.run(config(tmp_path, preset="watch_time", arms=["rsft", "exp_rsft"]))
    assert found["not_run"] == []
    assert (found["protocol"]["headline"], found["dataset"]["users"]) == ("high_return", 150)
    for arm in ("bc", "rsft", "exp_rsft"):
        test = found["arms"][arm]["test"]
        assert 0 < test["high_return"]["n"] < test["all"]["n"]
    assert found["arms"]["exp_rsft"]["test"]["high_return"]["ndcg@10"]["versus"]["rsft"]["low"] is not None
    assert "## Methods (in the layout of Table 6)" in (tmp_path / "report.md").read_text()


def test_a_dry_run_writes_nothing(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.run(config(tmp_path / "out", dataset=data, arms=["rsft"]), dry_run=True)["left"] > 8
    assert "seed-0/select/rsft/baseline-0-rate-1@1" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_report_is_not_written_after_every_evaluation() -> None:
    times, written = [0.0, 0.0, 2.0, 61.0, 62.0, 63.0, 121.9, 122.0, 123.0], list[float]()
    clock = iter(times)
    write = reproduce.Rarely(lambda: written.append(1), 60.0, lambda: next(clock))
    for _ in range(3):
        write()  # at 0 (done at 0), at 2, at 61 (done at 62)
    assert len(written) == 2
    write()  # at 63
    write()  # at 121.9
    assert len(written) == 2
    write()  # at 122
    assert len(written) == 3


def test_the_end_says_where_the_report_is_what_is_wrong_and_what_comes_next(tmp_path: Path) -> None:
    one = config(tmp_path)
    found: dict[str, Any] = {
        "arms": {"bc": {}, "exp_rsft": {}, "bc_continued": {}}, "dataset": {"uri": "/data"},
        "warnings": ["reward_model is WORSE than predicting the mean of all rewards: MSE"],
        "not_run": [{"what": "dpo", "why": "the loss is not finite"}],
    }  # fmt: skip
    lines = reproduce.said(one, found)
    assert lines[0] == "WARNING: reward_model is WORSE than predicting the mean of all rewards: MSE"
    assert lines[1] == "not run: dpo (the loss is not finite)"
    assert lines[3:6] == [f"{tmp_path}/{name}" for name in ("report.html", "report.md", "results.json")]
    assert "the same command with seeds=3" in lines[6]
    runs = f"{tmp_path}/seed-0/refit"
    assert lines[7] == (
        f"next: python jobs/evaluate.py dataset=/data policies='{{bc_continued: {runs}/bc_continued, "
        f"exp_rsft: {runs}/exp_rsft}}' part=test groups=true output={tmp_path}/evaluation"
    )
    assert len(lines) == 8
    fine = reproduce.said(config(tmp_path, seeds=3), {**found, "warnings": [], "not_run": []})
    assert fine == [*lines[3:6], lines[7]]


def test_the_theory_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(theory, "run", partial(theory.run, scale=SCALE))
    monkeypatch.setattr(reproduce, "WORLDS", 2)
    reproduce.run(config(tmp_path, preset="theory", seeds=3))
    assert json.loads((tmp_path / "theory.json").read_text())["seeds"] == 3
    assert capsys.readouterr().out == "".join(f"{tmp_path}/theory.{end}\n" for end in ("md", "json", "png"))
    assert {file.name for file in tmp_path.iterdir()} == {"theory.md", "theory.json", "theory.png"}
