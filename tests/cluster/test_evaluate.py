"""What an evaluation measures of trained policies, tilts and reward models: alike on two workers; and what it refuses.

The workers' part is called as Ray would call it; tests/jobs runs the whole job.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks
from tests.training.test_loop import alone, planned

from retilt import ranks
from retilt.cluster import evaluate
from retilt.cluster.evaluate_share import Found, work
from retilt.config import EvaluateConfig, build
from retilt.evaluation import report
from retilt.types import InputError

ONE = {"temperature": 1.0}


class Silent:
    def progress(self, update: Mapping[str, Any]) -> None: ...

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs of two policies and a reward model."""
    place = tmp_path_factory.mktemp("trained")
    bc = str(place / "bc")
    alone(planned(data, bc, epochs=2))
    alone(planned(data, place / "exp", epochs=1, initial=bc, algorithm={"name": "exp_rsft", "temperature": 0.5}))
    alone(planned(data, place / "rm", epochs=1, initial=bc, algorithm={"name": "reward_model", "variant": "strong"}))
    return {name: str(place / name) for name in ("bc", "exp", "rm")}


def config(data: str, trained: dict[str, str], **values: Any) -> EvaluateConfig:
    given = {
        "dataset": data,
        "policies": {name: trained[name] for name in ("bc", "exp")},
        "output": str(Path(trained["bc"]).parent / "report"),
        "min_reward": 4.0,
        "low_reward": 2.0,
        "groups": True,
        "replicates": 100,
        "reward_models": {"judge": trained["rm"]},
        "tilts": {
            "item": {"policy": "bc", "temperature": 0.5},
            "rm": {"policy": "bc", "reward_model": "judge", "temperature": [0.25, 1.0]},
        },
        "reference": trained["bc"],
    }
    return build(EvaluateConfig, {**given, **values})


def measured(arguments: Mapping[str, Any]) -> dict[str, Found]:
    ranks.single()
    return work(arguments, Silent())


def built(planned: evaluate.Planned, found: Mapping[str, Found]) -> dict[str, Any]:
    return planned.report(found, "python jobs/evaluate.py")


@pytest.fixture(scope="module")
def one(data: str, trained: dict[str, str]) -> dict[str, Any]:
    """The report of one worker."""
    planned = evaluate.plan(config(data, trained))
    return built(planned, measured(planned.arguments))


def numbers(value: Any) -> list[float]:
    """Every number of a report's part, in order."""
    if isinstance(value, Mapping):
        return [number for each in value.values() for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


def test_everything_at_once_alike_on_two_workers(
    data: str, trained: dict[str, str], one: dict[str, Any], two_ranks: Ranks
) -> None:
    sharded = evaluate.plan(config(data, trained, table="row_wise"))
    assert list(sharded.identities) == ["bc", "exp", "item", "rm/0.25", "rm/1"]
    two = built(sharded, two_ranks(measured, sharded.arguments)[0])
    for name in sharded.identities:
        mine, theirs = (numbers(each["policies"][name]) for each in (one, two))
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-6), name
    kl = {name: one["policies"][name]["further"]["avg_reward"]["kl"]["value"] for name in ("bc", "exp", "item")}
    assert kl["bc"] == 0
    assert min(kl["exp"], kl["item"]) > 1e-4
    further = one["policies"]["item"]["further"]
    assert set(further) == {"avg_reward", "groups", "lists", "pairwise_accuracy", "versus_first"}
    assert set(one["policies"]["rm/1"]["further"]) == {"groups", "versus_first"}
    assert further["groups"]["low_reward"]["n"] + one["policies"]["bc"]["high_reward"]["n"] < 1000
    thirds = [further["groups"][f"activity_{each}"]["n"] for each in ("low", "middle", "high")]
    assert sum(thirds) == one["policies"]["bc"]["high_reward"]["n"]
    assert one["identity"]["policies"]["rm/0.25"]["tilt"] == {"temperature": 0.25}
    assert further["versus_first"]["pairwise_accuracy"]["value"] == pytest.approx(
        further["pairwise_accuracy"]["value"] - one["policies"]["bc"]["further"]["pairwise_accuracy"]["value"]
    )


def test_what_a_choice_needs_is_what_all_targets_say_of_the_high_ones(
    data: str, trained: dict[str, str], one: dict[str, Any]
) -> None:
    planned = evaluate.plan(config(data, trained))
    for name, (tally, _) in measured({**planned.arguments, "high_only": True}).items():
        whole = one["policies"][name]["high_reward"]
        assert tally.count("n", "all") == tally.count("n", "high_reward") == whole["n"] > 0
        assert tally.means("high_reward")["ndcg@10"] == pytest.approx(whole["ndcg@10"]["value"])


def test_the_report_shows_what_was_measured(one: dict[str, Any], tmp_path: Path) -> None:
    report.write(str(tmp_path), one)
    text = (tmp_path / "report.md").read_text()
    for heading in ("## Avg Reward", "## Who gains", "## What is recommended"):
        assert heading in text
    gini = one["policies"]["exp"]["further"]["lists"]["gini@10"]
    assert f"| {gini['value']:.4f} ({gini['low']:.4f} to {gini['high']:.4f}) |" in text
    assert "a reward of at most 2" in text
    assert "NaN" not in (tmp_path / "metrics.json").read_text()


def test_without_being_asked_nothing_more_is_measured(data: str, trained: dict[str, str], tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"low_reward": None, "groups": False, "reward_models": {}, "tilts": {}, "reference": None}
    plain = config(data, trained, **nothing, policies=[trained["bc"]])
    planned = evaluate.plan(plain)
    found = built(planned, measured(planned.arguments))
    assert list(found["policies"]["bc"]) == ["all", "high_reward", "untied"]
    report.write(str(tmp_path), found)
    assert "Who gains" not in (tmp_path / "report.md").read_text()


def test_what_is_no_reward_model_is_refused(data: str, trained: dict[str, str]) -> None:
    for key, values in (
        ("reward_models.judge", {"reward_models": {"judge": trained["exp"]}, "tilts": {}}),
        ("tilts.rm.reward_model", {"tilts": {"rm": {"policy": "bc", "reward_model": trained["exp"], **ONE}}}),
    ):
        with pytest.raises(InputError, match=f"^{key}: .*is a policy trained with algorithm=exp_rsft, no reward"):
            evaluate.plan(config(data, trained, **values))
    with pytest.raises(InputError, match="is a reward model, no policy"):
        evaluate.plan(config(data, trained, policies={"bc": trained["rm"]}))
    with pytest.raises(InputError, match="no policy here"):
        evaluate.plan(config(data, trained, tilts={"item": {"policy": "cb", "temperature": 1.0}}))


def test_a_tilt_by_a_reward_model_that_knows_the_part_is_refused(
    data: str, trained: dict[str, str], tmp_path: Path
) -> None:
    algorithm = {"name": "reward_model"}
    alone(planned(data, tmp_path / "knows", epochs=1, initial=trained["bc"], algorithm=algorithm, protocol="refit"))
    tilts = {"rm": {"policy": "bc", "reward_model": str(tmp_path / "knows"), "temperature": 1.0}}
    assert evaluate.plan(config(data, trained, tilts=tilts)).arguments["tilted"]
    with pytest.raises(InputError, match="'knows' trained on validation events of this data set"):
        evaluate.plan(config(data, trained, tilts=tilts, part="validation"))


def test_a_judge_that_knows_the_part_is_warned_of_in_the_report(
    data: str, trained: dict[str, str], tmp_path: Path
) -> None:
    algorithm = {"name": "reward_model"}
    alone(planned(data, tmp_path / "knows", epochs=1, initial=trained["bc"], algorithm=algorithm, protocol="refit"))
    judges = {"judge": trained["rm"], "later": str(tmp_path / "knows")}
    plain = {"reward_models": judges, "tilts": {}, "groups": False, "policies": {"bc": trained["bc"]}}
    assert evaluate.plan(config(data, trained, **plain)).of_judges == []
    each = evaluate.plan(config(data, trained, **plain, part="validation"))
    found = built(each, measured(each.arguments))
    (warning,) = [each for each in found["warnings"] if "reward_models" in each]
    assert warning.startswith("reward_models.later: 'knows' trained on validation events of this data set")
    report.write(str(tmp_path / "report"), found)
    assert "its scores remember what the choices logged there" in (tmp_path / "report" / "report.md").read_text()


def test_a_reward_model_of_shorter_histories_than_a_policy_is_refused(
    data: str, trained: dict[str, str], tmp_path: Path
) -> None:
    long = str(tmp_path / "long")
    alone(planned(data, long, epochs=1, model={**MODEL, "max_length": 21}))
    said = r"reads histories of up to 20 events, and the policy .*long.* up to 21; use one with model.max_length of at"
    for key, values in (
        ("reward_models.judge", {"policies": {"bc": trained["bc"], "long": long}, "tilts": {}}),
        ("reward_models.judge", {"tilts": {"item": {"policy": long, **ONE}}}),
        ("tilts.rm.reward_model", {"tilts": {"rm": {"policy": long, "reward_model": "judge", **ONE}}}),
    ):
        with pytest.raises(InputError, match=f"^{key}: .*{said}"):
            evaluate.plan(config(data, trained, **values))
    both = {"policies": {"bc": trained["bc"], "long": long}, "reward_models": {}, "tilts": {}, "reference": None}
    assert evaluate.plan(config(data, trained, **both)).arguments["policies"]["long"]
