"""Whole runs of a backbone other than the default one: the promises of test_loop.py do not depend on the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.spawning import Ranks
from tests.training.test_loop import alone, losses, planned, run, tables

from retilt import ranks, storage
from retilt.config import model_of
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.models.sasrec import SASRec
from retilt.training import checkpoint
from retilt.training.assemble import Blueprint, assemble
from retilt.training.run import PlannedRun
from retilt.types import InputError

SASREC: dict[str, Any] = {
    "name": "sasrec", "max_length": 20, "width": 10, "blocks": 2, "heads": 2, "feedforward_width": 12,
}  # fmt: skip


def sasrec(data: str, output: Path, **values: Any) -> PlannedRun:
    values = {"model": SASREC, "dropout": 0.3, "table_learning_rate": 0.01, "epochs": 2, **values}
    return planned(data, output, **values)


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_two_workers_take_the_steps_of_one(data: str, two_ranks: Ranks, tmp_path: Path, placement: str) -> None:
    """Losses to 1e-5 relative with dropout, and the validation metrics of each epoch."""
    one = alone(sasrec(data, tmp_path / "one", table=placement))
    two = two_ranks(run, sasrec(data, tmp_path / "two", table=placement).task())[0]
    assert len(losses(one)) == 10
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for mine, theirs in zip(two, one, strict=True):
        for name in theirs:
            if name.startswith("validation/"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-12)


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(data: str, tmp_path: Path, placement: str) -> None:
    alone(sasrec(data, tmp_path / "whole", table=placement))
    alone(sasrec(data, tmp_path / "cut", table=placement), stop_after=1)
    alone(sasrec(data, tmp_path / "cut", table=placement))
    whole, cut = tables(tmp_path / "whole"), tables(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def ranks_of(data: str, policy: str, placement: str) -> dict[int, list[int]]:
    """Exact ranks of the test targets by user, from this rank's share; the model is the policy's."""
    ranks.single()
    dataset = Dataset.open(data)
    model = model_of(checkpoint.read_state(policy), policy)
    blueprint = Blueprint(model, dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, 5)  # type: ignore[arg-type]
    found, _ = assemble(blueprint, dataset.active(), torch.device("cpu"))
    checkpoint.load(policy, found, None)
    answer: dict[int, list[int]] = {}
    for batch in evaluation_batches(dataset, "test", 20, "all", 12, ranks.rank(), ranks.world()):
        assert batch.seen_item is not None
        assert batch.seen_length_P is not None
        distribution = found.eval().exact(batch)
        assert distribution.hidden_PD.dtype == torch.float64
        places = distribution.ranks(batch.target_item_P, batch.seen_item, batch.seen_length_P)
        for user, place in zip(batch.target_example_P.tolist(), places.tolist(), strict=True):
            answer.setdefault(user, []).append(place)
    return answer


def test_equal_ranks_from_one_checkpoint(data: str, two_ranks: Ranks, tmp_path: Path) -> None:
    alone(sasrec(data, tmp_path / "run"))
    policy = checkpoint.find(str(tmp_path / "run"))
    wanted = ranks_of(data, policy, "replicated")
    assert len(wanted) == 60
    for placement in ("replicated", "row_wise"):
        first, second = two_ranks(ranks_of, data, policy, placement)
        assert {**first, **second} == wanted


def test_post_training_takes_the_initial_policys_model(data: str, tmp_path: Path) -> None:
    alone(sasrec(data, tmp_path / "bc", epochs=1, protocol="refit"))
    values = {"initial": str(tmp_path / "bc"), "protocol": "refit", "epochs": 1}
    tuned = planned(data, tmp_path / "tuned", algorithm={"name": "exp_rsft", "temperature": 0.5}, **values)
    assert tuned.config.model == SASRec(**SASREC)
    assert len(losses(alone(tuned))) == 5
    assert model_of(checkpoint.read_state(str(tmp_path / "tuned" / "policy" / "last")), "") == tuned.config.model
    with pytest.raises(InputError, match="model differs from that of the initial policy"):
        planned(data, tmp_path / "other", model={"name": "hstu"}, **values)


def test_a_policy_of_a_model_that_this_version_does_not_know(data: str, tmp_path: Path) -> None:
    alone(sasrec(data, tmp_path / "bc", epochs=1, protocol="refit"))
    state = storage.read_json(str(tmp_path / "bc" / "policy" / "last" / "state.json"))
    with pytest.raises(InputError, match=r"somewhere: this version knows no such model as \{'name': 'mamba'"):
        model_of({**state, "model": {**state["model"], "name": "mamba"}}, "somewhere")
