"""The judge in the loop: its alarms, alike on two workers and in a resumed run, and the end of a run because of one.

The data are a circle of items, of which every third has the reward 5 and the others 1. A policy that was taught the
circle and is then trained on top rated choices alone recommends what the reward models praise, and no longer what
follows: the score rises, NDCG@10 over all targets falls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data import small_dataset
from tests.spawning import Ranks
from tests.training.test_loop import Listener, alone, planned, run

from retilt import storage
from retilt.config import TrainConfig, build
from retilt.training import loop
from retilt.training.judge import alarm, frozen_models
from retilt.training.run import PlannedRun, finished
from retilt.types import InputError

CIRCLE = 12
UP, DOWN, NONE = (dict[str, float | None](value=each, low=each - 0.1, high=each + 0.1) for each in (0.3, -0.3, 0.05))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs of the data, of the policy that was taught them, and of two reward models of disjoint users."""
    place = tmp_path_factory.mktemp("taught")
    users = []
    for user in range(60):
        item = [(user + n) % CIRCLE + 1 for n in range(8 + user % 9)]
        users.append([(each, 5.0 if each % 3 == 0 else 1.0, n * 10**6) for n, each in enumerate(item)])
    # The last item of such data is withdrawn: one that nobody chose.
    data = small_dataset.write(str(place / "data"), users, CIRCLE + 1, lanes=3, shards=[[11, 9, 10], [10, 10, 10]])
    found = {"dataset": data, "initial": str(place / "bc")}
    alone(planned(data, place / "bc", epochs=8, learning_rate=0.02, min_reward=None))
    for name, users_share in (("reward_model", [0.0, 0.5]), ("judge", [0.5, 1.0])):
        algorithm = {"name": "reward_model", "variant": "strong", "users": users_share}
        alone(planned(data, place / name, epochs=1, initial=found["initial"], algorithm=algorithm))
        found[name] = str(place / name)
    return found


def judged(taught: dict[str, str], output: Path, **values: Any) -> PlannedRun:
    data, models = taught["dataset"], {name: taught[name] for name in ("initial", "reward_model", "judge")}
    values = {"learning_rate": 0.05, "epochs": 3, "min_reward": None, "algorithm": {"name": "top_rated"}, **values}
    return planned(data, output, **{**models, **values})


def epochs(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name.split("/")[0] in ("judge", "change", "alarm")}
        for line in lines
        if "epoch_done" in line
    ]


def test_which_differences_give_which_alarm() -> None:
    assert alarm(UP, DOWN) == "hacking"
    assert alarm(DOWN, DOWN) == "collapse"
    few: dict[str, float | None] = {"value": -0.3, "low": None, "high": None}
    pairs = [(NONE, DOWN), (UP, NONE), (UP, UP), (DOWN, UP), (DOWN, NONE), (UP, few), (few, DOWN)]
    assert [alarm(score, truth) for score, truth in pairs] == [None] * len(pairs)


def test_hacking_is_told_and_may_end_the_run(taught: dict[str, str], tmp_path: Path) -> None:
    each = judged(taught, tmp_path / "run", stop_on_alarm=True, epochs=9)
    alone(each)
    result = finished(each)
    assert result is not None
    assert result["stopped_on_alarm"]
    assert result["last"]["alarm"] == "hacking"
    assert result["epochs"] < 9
    assert "hacking, since the start reward_model changed by +" in result["notes"][-1]
    assert result["notes"][-1].endswith("the run ends here")
    assert storage.exists(str(tmp_path / "run" / "policy" / "last" / "manifest.json"))
    assert storage.exists(str(tmp_path / "run" / "policy" / "best" / "manifest.json"))
    ended = alone(each)
    assert ended == []  # the same command again has nothing to do
    further = judged(taught, tmp_path / "run", epochs=result["epochs"] + 1)
    assert finished(further) is None
    alone(further)
    longer = finished(further)
    assert longer is not None
    assert (longer["epochs"], longer["stopped_on_alarm"]) == (result["epochs"] + 1, False)
    assert len(longer["alarms"]) == 2


def test_a_resumed_run_has_the_same_start(taught: dict[str, str], tmp_path: Path) -> None:
    whole = epochs(alone(judged(taught, tmp_path / "whole")))
    alone(judged(taught, tmp_path / "cut"), stop_after=2)
    start = tmp_path / "cut" / "start" / "avg_reward" / "manifest.json"
    written = start.stat().st_mtime_ns
    resumed = epochs(alone(judged(taught, tmp_path / "cut")))
    assert 0 < len(resumed) < 3
    assert resumed == whole[-len(resumed) :]
    assert start.stat().st_mtime_ns == written
    assert set(whole[-1]) >= {"judge/reward_model", "judge/judge", "judge/kl", "judge/entropy", "change/ndcg@10/low"}
    assert whole[-1]["judge/kl"] > 0.1


def test_runs_with_one_start_share_what_was_measured_of_it(taught: dict[str, str], tmp_path: Path) -> None:
    start, manifest = str(tmp_path / "start"), tmp_path / "start" / "avg_reward" / "manifest.json"
    first = epochs(alone(judged(taught, tmp_path / "first", epochs=1), start=start))
    written = manifest.stat().st_mtime_ns
    assert epochs(alone(judged(taught, tmp_path / "second", epochs=1), start=start)) == first
    assert manifest.stat().st_mtime_ns == written
    assert epochs(alone(judged(taught, tmp_path / "own", epochs=1))) == first
    swapped = {**taught, "reward_model": taught["judge"], "judge": taught["reward_model"]}
    other = epochs(alone(judged(swapped, tmp_path / "other", epochs=1), start=start))
    assert manifest.stat().st_mtime_ns > written  # it is not what this run starts from
    assert other[0]["judge/judge"] == first[0]["judge/reward_model"]


def test_two_workers_judge_as_one(taught: dict[str, str], two_ranks: Ranks, tmp_path: Path) -> None:
    """After one epoch at a small rate: float32 training differs by rounding, which float64 measures carry on."""
    values = {"epochs": 1, "learning_rate": 1e-3, "table": "row_wise", "table_learning_rate": 0.01}
    one = epochs(alone(judged(taught, tmp_path / "one", **values)))[0]
    two = epochs(two_ranks(run, judged(taught, tmp_path / "two", **values).task())[0])[0]
    assert two.keys() == one.keys()
    assert [two[name] for name in one if name != "alarm"] == pytest.approx(
        [one[name] for name in one if name != "alarm"], rel=1e-2, abs=1e-3
    )


def test_two_workers_that_resume_compare_with_the_same_start(
    taught: dict[str, str], two_ranks: Ranks, tmp_path: Path
) -> None:
    values = {"learning_rate": 1e-3, "table": "row_wise", "table_learning_rate": 0.01}
    first = epochs(two_ranks(run, judged(taught, tmp_path / "run", epochs=1, **values).task())[0])
    written = (tmp_path / "run" / "start" / "avg_reward" / "manifest.json").stat().st_mtime_ns
    cut = epochs(two_ranks(run, judged(taught, tmp_path / "run", epochs=2, **values).task())[0])
    assert (tmp_path / "run" / "start" / "avg_reward" / "manifest.json").stat().st_mtime_ns == written
    assert [*first, *cut] == epochs(two_ranks(run, judged(taught, tmp_path / "whole", epochs=2, **values).task())[0])


def test_an_online_objective_shares_its_companions(taught: dict[str, str], tmp_path: Path) -> None:
    each = judged(taught, tmp_path / "run", algorithm={"name": "ppo"}, epochs=1)
    found = loop.Run(each.task(), Listener())
    assert found.companions is not None
    assert found.validation.judge is not None
    assert found.validation.judge.reference is found.companions.reference
    assert found.validation.judge.models["reward_model"] is found.companions.reward


def test_what_does_not_go_together(taught: dict[str, str], tmp_path: Path) -> None:
    for values, said in (
        ({"judge": "j"}, "judge needs initial"),
        ({"judge": "j", "initial": "i", "protocol": "refit"}, "judge needs protocol=select"),
        ({"stop_on_alarm": True}, "stop_on_alarm needs reward_model or judge"),
    ):
        with pytest.raises(InputError, match=said):
            build(TrainConfig, {"dataset": "d", "output": "o", **values})
    with pytest.raises(InputError, match="is a policy trained with algorithm=bc, no reward model"):
        judged(taught, tmp_path / "run", judge=taught["initial"])


def test_frozen_models_are_counted_for_the_memory() -> None:
    def held(**values: Any) -> int:
        return frozen_models(build(TrainConfig, {"dataset": "d", "output": "o", "initial": "i", **values}))

    assert [held(), held(reward_model="r"), held(judge="j"), held(reward_model="r", judge="j")] == [0, 2, 2, 3]
    assert held(reward_model="r", protocol="refit") == 0
    assert held(reward_model="r", protocol="refit", algorithm={"name": "ppo"}) == 2
