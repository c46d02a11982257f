"""Reward models from training to being asked: alike on one worker and two, resumed, and another's trunk untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import small_dataset
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks
from tests.training.test_loop import Listener, alone, losses, planned, run, tables

from retilt import artifact, ranks, storage
from retilt.config import TrainConfig, build
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.evaluation.audit import BASELINES
from retilt.models.heads import Unit
from retilt.training import audit, checkpoint
from retilt.training.assemble import Blueprint, assemble
from retilt.training.companions import load_policy, load_reward_model
from retilt.types import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("bc") / "run")
    alone(planned(data, output, epochs=2))
    return output


def values(policy: str, variant: str = "paper", **algorithm: Any) -> dict[str, Any]:
    return {"initial": policy, "algorithm": {"name": "reward_model", "variant": variant, **algorithm}}


def metrics(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [line[f"validation/{name}"] for line in lines if "epoch_done" in line]


@pytest.mark.parametrize(("placement", "variant"), [("replicated", "paper"), ("row_wise", "strong")])
def test_two_workers_take_the_steps_of_one(
    data: str, policy: str, two_ranks: Ranks, tmp_path: Path, placement: str, variant: str
) -> None:
    """20 steps to 1e-5 relative, with dropout, under FSDP where the table allows it; errors on validation events too.

    What the two have written says the same of items as what one has.
    """
    each = {**values(policy, variant), "table": placement, "table_learning_rate": 0.01, "dropout": 0.2}
    one = alone(planned(data, tmp_path / "one", **each))
    spread = {"parallel": "fsdp"} if placement == "row_wise" else {}
    two = two_ranks(run, planned(data, tmp_path / "two", **each, **spread).task())[0]
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for name in ("mse", "mae"):
        assert metrics(two, name) == pytest.approx(metrics(one, name), rel=1e-5)
    errors = metrics(one, "mse")
    result = storage.read_json(str(tmp_path / "one" / "result.json"))
    assert result["best"]["epoch"] == errors.index(min(errors)) + 1
    alone_P3 = scores(data, str(tmp_path / "one"), "replicated")
    both_P3 = torch.cat(two_ranks(scores, data, str(tmp_path / "two"), placement))
    assert alone_P3.shape[1] == 3
    torch.testing.assert_close(both_P3.sort(0).values, alone_P3.sort(0).values, rtol=1e-4, atol=1e-4)


def scores(data: str, output: str, placement: str) -> torch.Tensor:
    """r̂ of three items at every test position of this rank's share, (P, 3)."""
    ranks.single()
    dataset = Dataset.open(data)
    model = load_reward_model(checkpoint.find(output), dataset, CPU, placement)  # type: ignore[arg-type]
    batches = evaluation_batches(dataset, "test", 20, "none", 12, ranks.rank(), ranks.world())
    items = torch.tensor([[1, 7, 50]])
    return torch.cat([model.score(each, items.expand(len(each.target_item_P), -1)) for each in batches])


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(data: str, policy: str, tmp_path: Path) -> None:
    """Head and its optimizer are in the checkpoint; the policy's files are what they were."""
    before = {file.path: file for file in storage.list_files(policy)}
    each = {**values(policy, "strong", users=[0.0, 0.6]), "epochs": 2, "dropout": 0.2, "softmax": "sampled"}
    alone(planned(data, tmp_path / "whole", **each))
    alone(planned(data, tmp_path / "cut", **each), stop_after=1)
    alone(planned(data, tmp_path / "cut", **each))
    whole, cut = tables(tmp_path / "whole"), tables(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert {"head.safetensors:item_bias", "head-optimizer.safetensors:history.gain.exp_avg"} <= whole.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert {file.path: file for file in storage.list_files(policy)} == before
    initial = checkpoint.find(policy)
    trunk = artifact.load_tensors(storage.join(initial, "dense.safetensors"))
    assert not torch.equal(trunk["position"], whole["dense.safetensors:position"])


def test_a_value_head_starts_anew_and_a_frozen_policy_has_none(data: str, policy: str, tmp_path: Path) -> None:
    """A policy that was trained without a head is loaded into one with it, and the other way round.

    A reward model's head has parameters of the same names and sizes, and is none that says the value of a state.
    """
    ranks.single()
    dataset, place = Dataset.open(data), checkpoint.find(policy)
    settings, unit = build(TrainConfig, {"dataset": data, "output": "o", "model": MODEL}).model, Unit(3.0, 1.0)
    assert settings is not None
    blueprint = Blueprint(settings, 50, "replicated", "adam", 1e-3, 1e-3, 0.0, 0, head="value", unit=unit)
    found, dense = assemble(blueprint, dataset.active(), CPU)
    assert checkpoint.load(place, found, dense) == [f"{place} has no such head: it starts from its initial values"]
    (batch, *_) = evaluation_batches(dataset, "test", 20, "none", 60, 0, 1)
    now, frozen = found.exact(batch), load_policy(place, dataset, CPU, "row_wise").exact(batch)
    assert now.head_P is not None
    assert now.head_P.tolist() == [3.0] * len(batch.target_item_P)
    assert frozen.head_P is None
    torch.testing.assert_close(frozen.hidden_PD, now.hidden_PD)
    assert not frozen.hidden_PD.requires_grad
    alone(planned(data, tmp_path / "model", **values(policy), epochs=1))
    (note,) = checkpoint.load(checkpoint.find(str(tmp_path / "model")), found.train(0), dense)
    assert note.endswith("has no such head: it starts from its initial values")
    assert found.exact(batch).head_P.tolist() == now.head_P.tolist()  # type: ignore[union-attr]


def test_the_audit_is_the_same_on_one_worker_and_on_two(
    data: str, policy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    alone(planned(data, tmp_path / "run", **values(policy), epochs=1))
    arguments = {
        "dataset": data, "reward_models": {"reward_model": checkpoint.find(str(tmp_path / "run"))}, "part": "test",
        "table": "auto", "device": "cpu", "batch_users": 12, "replicates": 100, "seed": 0,
    }  # fmt: skip
    one = audit.work(arguments, Listener())["audit"]
    assert set(one) == {"reward_model", *BASELINES}
    for two in two_ranks(audited, arguments):
        for name, each in one.items():
            assert two[name]["mse"] == pytest.approx(each["mse"], rel=1e-5), name


def audited(arguments: dict[str, Any]) -> Any:
    return audit.work(arguments, Listener())["audit"]


def test_what_is_refused(data: str, policy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="algorithm = 'reward_model' needs initial"):
        planned(data, tmp_path / "run", algorithm={"name": "reward_model"})
    alone(planned(data, tmp_path / "model", **values(policy, imitation=0.0), epochs=1))
    with pytest.raises(InputError, match="is a reward model, no policy"):
        planned(data, tmp_path / "run", initial=str(tmp_path / "model"), algorithm={"name": "bc"})
    with pytest.raises(InputError, match="reads histories of up to 20 events, and the policy has up to 21"):
        planned(data, tmp_path / "run", model={**MODEL, "max_length": 21}, reward_model=str(tmp_path / "model"))
    constant = [[(item, 3.0, time) for item, _, time in user] for user in small_dataset.sequences(30, 40)]
    other = small_dataset.write(str(tmp_path / "constant"), constant, 40, lanes=1, shards=[[30]])
    with pytest.raises(InputError, match="every training reward is 3: a reward model has nothing to learn from"):
        planned(other, tmp_path / "run", **values(policy))
    assert not (tmp_path / "run").exists()
