"""Bad rewards and reward models through the jobs' own scripts: exit code 2, one sentence, no worker is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data import small_dataset
from tests.jobs.test_scripts import run
from tests.training.test_loop import alone, planned

from retilt import storage

ITEMS = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, ``bc`` and ``rm`` that fit each other, ``theirs`` of another vocabulary, ``constant`` rewards."""
    folder = tmp_path_factory.mktemp("rewards")
    users = small_dataset.sequences(30, ITEMS, longest=20)
    constant = [[(item, 3.0, time) for item, _, time in user] for user in users]
    for name, events in (("data", users), ("other", users), ("constant", constant)):
        small_dataset.write(str(folder / name), events, ITEMS, lanes=1, shards=[[30]])
    manifest = storage.read_json(str(folder / "other" / "manifest.json"))
    storage.write_json(str(folder / "other" / "manifest.json"), {**manifest, "vocabulary_sha256": "1" * 64})
    for data, bc, rm in (("data", "bc", "rm"), ("other", "their-bc", "theirs")):
        alone(planned(str(folder / data), folder / bc, epochs=1))
        model = {"initial": str(folder / bc), "algorithm": "reward_model"}
        alone(planned(str(folder / data), folder / rm, epochs=1, **model))
    return folder


ONLINE = ["dataset=data", "output=out", "initial=bc", "algorithm=dpo"]
EVALUATE = ["dataset=data", "output=out", "policies={bc: bc}", "exclude_history=none"]
SEARCH = ["initial=bc", "output=out", "min_reward=3"]
TILT = ["tilts.rm.policy=bc", "tilts.rm.temperature=1"]


@pytest.mark.parametrize(
    ("job", "argv", "said"),
    [
        (
            "train_reward",
            ["dataset=constant", "output=out", "initial=bc"],
            "every training reward is 3: a reward model has nothing to learn from",
        ),
        ("posttrain", ["dataset=constant", *ONLINE[1:], "reward_model=rm"], "every training reward is 3: there is"),
        ("posttrain", [*ONLINE, "reward_model=theirs"], "theirs/policy/best was trained with another vocabulary"),
        ("posttrain", [*ONLINE, "reward_model=rm", "judge=bc"], "judge: "),
        ("evaluate", [*EVALUATE, "reward_models={judge: theirs}"], "was trained with another vocabulary (50 items)"),
        ("evaluate", [*EVALUATE, *TILT, "tilts.rm.reward_model=theirs"], "was trained with another vocabulary"),
        ("evaluate", [*EVALUATE, "reward_models={judge: bc}"], "reward_models.judge: "),
        ("tune_lambda", ["dataset=constant", *SEARCH], "every training event has the reward 3"),
        ("tune_lambda", ["dataset=data", *SEARCH, "temperatures=[0.5,0]"], "0 is no temperature"),
        ("tune_lambda", ["dataset=data", *SEARCH, "temperatures=[.nan]"], "is no temperature"),
        ("tune_lambda", ["dataset=data", *SEARCH, "temperatures=[]"], "the list of temperatures is empty"),
        ("tune_lambda", ["dataset=data", *SEARCH, "temperatures=[1,1]"], "listed twice"),
        ("tune_lambda", ["dataset=data", *SEARCH, "selection_metric=map"], "selection_metric = 'map'"),
        ("tune_lambda", ["dataset=data", *SEARCH, "selection_metric=loss"], "'loss' cannot choose λ"),
        ("tune_lambda", ["dataset=data", *SEARCH[1:]], "missing key 'initial'"),
        ("tune_lambda", ["dataset=data", *SEARCH, "previous=bc"], "no finished search there"),
        ("reproduce", ["preset=ml-100k", "output=out", "seeds=0"], "0 seeds: at least 1 is needed"),
        ("reproduce", ["preset=ml-100k", "output=out", "seeds=[]"], "a list of seeds holds different whole numbers"),
    ],
)
def test_exit_code_2_and_nothing_written(
    job: str,
    argv: list[str],
    said: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert run(job, argv, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (place / "out").exists()
