"""Whole runs of dpo and ppo: alike on one worker and on two, continued within an epoch, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import small_dataset
from tests.spawning import Ranks
from tests.training.test_loop import Listener, alone, losses, planned, run, tables

from retilt import ranks, storage
from retilt.training import loop
from retilt.training.run import check_output
from retilt.types import InputError, Stopped, TrainingError

ALGORITHMS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "contexts": 8},
    "ppo": {"name": "ppo", "contexts": 8},
    "ppo, group": {"name": "ppo", "baseline": "group", "contexts": 5},
}


@pytest.fixture(scope="module")
def models(data: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """``initial`` and ``reward_model`` of a run: a policy of one epoch, and a reward model of one on it."""
    place = tmp_path_factory.mktemp("models")
    alone(planned(data, place / "bc", epochs=1))
    initial, model = str(place / "bc"), {"name": "reward_model", "variant": "strong"}
    alone(planned(data, place / "rewards", initial=initial, algorithm=model, epochs=1))
    return {"initial": initial, "reward_model": str(place / "rewards")}


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_workers_take_the_steps_of_one(
    data: str, models: Mapping[str, str], two_ranks: Ranks, tmp_path: Path, algorithm: str, placement: str
) -> None:
    """Ten steps of up to four updates: losses to 1e-5 relative, other metrics of a step to 1e-4, ranks equal.

    A divergence grows with the square of what rounding has moved.
    """
    values = {**models, "algorithm": ALGORITHMS[algorithm], "table": placement, "table_learning_rate": 0.002}
    one = alone(planned(data, tmp_path / "one", epochs=2, **values))
    two = two_ranks(run, planned(data, tmp_path / "two", epochs=2, **values).task())[0]
    assert len(losses(one)) == 10
    # Whitened advantages, of order 1, cancel in the loss of a group: hence the absolute part.
    assert losses(two) == pytest.approx(losses(one), rel=1e-5, abs=1e-6)
    for mine, theirs in zip(two, one, strict=True):
        for name, value in theirs.items():
            if name.startswith("validation/"):
                assert mine[name] == pytest.approx(value, rel=1e-12)
            elif "epoch_done" not in theirs and "second" not in name:
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


class Interrupted(Listener):
    """Asks for an end at the second epoch's third step."""

    asked = 0

    def stop_requested(self) -> bool:
        self.asked += 1
        return self.asked == 8


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_a_run_continued_within_an_epoch_equals_an_uninterrupted_one_to_the_bit(
    data: str, models: Mapping[str, str], tmp_path: Path, algorithm: str, placement: str
) -> None:
    values = {**models, "algorithm": algorithm, "table": placement, "epochs": 2}
    alone(planned(data, tmp_path / "whole", **values))
    cut = planned(data, tmp_path / "cut", **values)
    ranks.single()
    check_output(cut)
    with pytest.raises(Stopped, match="stopped at step 8"):
        loop.train(cut.task(), Interrupted())
    alone(cut)
    whole, found = tables(tmp_path / "whole"), tables(tmp_path / "cut")
    assert whole.keys() == found.keys()
    assert any("head" in name for name in whole) == (algorithm == "ppo")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_the_reward_model_is_a_part_of_the_run(data: str, models: Mapping[str, str], tmp_path: Path) -> None:
    first = planned(data, tmp_path / "run", algorithm="dpo", **models)
    again = planned(data, tmp_path / "run", algorithm="dpo", **{**models, "reward_model": first.config.reward_model})
    assert first.identity == again.identity
    alone(planned(data, tmp_path / "other", **models, algorithm={"name": "reward_model"}, epochs=1))
    others = planned(data, tmp_path / "run", algorithm="dpo", **{**models, "reward_model": str(tmp_path / "other")})
    assert others.identity != first.identity
    assert [entry["name"] for entry in first.lineage] == ["bc", "rewards", "run"]


def test_what_is_refused_before_anything_is_written(data: str, models: Mapping[str, str], tmp_path: Path) -> None:
    def refused(message: str, data: str = data, **values: Any) -> None:
        with pytest.raises(InputError, match=message):
            planned(data, tmp_path / "run", **{"algorithm": "ppo", **models, **values})
        assert not (tmp_path / "run").exists()

    refused("algorithm = 'ppo' needs initial, the policy that it starts from", initial=None)
    refused("algorithm = 'dpo' needs reward_model, which says", reward_model=None, algorithm="dpo")
    refused("'ppo' needs the exact softmax.*use softmax=exact", softmax="sampled")
    refused("'ppo' does not go with precision = 'bf16'.*use precision=float32", precision="bf16")
    refused("is a policy trained with algorithm=bc, no reward model; jobs/train_reward", reward_model=models["initial"])
    refused("no policy here", reward_model=str(tmp_path))
    other = small_dataset.write(str(tmp_path / "other"), small_dataset.sequences(30, 40), 40, lanes=1, shards=[[30]])
    manifest = storage.read_json(storage.join(other, "manifest.json"))
    storage.write_json(storage.join(other, "manifest.json"), {**manifest, "vocabulary_sha256": "1" * 64})
    alone(planned(other, tmp_path / "theirs", epochs=1))
    refused("rewards.* was trained with another vocabulary", other, initial=str(tmp_path / "theirs"))


@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_a_policy_that_is_not_finite_ends_the_run(
    data: str, models: Mapping[str, str], tmp_path: Path, algorithm: str
) -> None:
    """The first update leaves infinite parameters; draws from them mean nothing, but the run ends as others do."""
    each = planned(data, tmp_path / "run", algorithm=algorithm, learning_rate=1e39, epochs=3, **models)
    with pytest.raises(TrainingError, match=r"the loss is not finite at step \d, like 5 steps before it"):
        alone(each)
