"""Training goes on with newer data: old items keep their rows and optimizer state, new ones start from initial rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import small_dataset
from tests.data.small_dataset import MODEL
from tests.spawning import Ranks
from tests.training.test_loop import alone, planned, tables

from retilt import ranks
from retilt.data.dataset import Dataset
from retilt.models.hstu import HSTU
from retilt.training import checkpoint
from retilt.training.assemble import Blueprint, assemble
from retilt.types import InputError

OLD, NEW = 50, 61


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other users, with eleven items more than the session's data set."""
    users = small_dataset.sequences(60, NEW, seed=1, longest=30)
    place = str(tmp_path_factory.mktemp("newer"))
    return small_dataset.write(place, users, NEW, lanes=3, shards=[[11, 9, 10], [10, 10, 10]])


def loaded(data: str, policy: str, placement: str) -> dict[str, Any]:
    """This rank's rows of the newer catalogue after a policy of the older one was loaded, and its notes."""
    ranks.single()
    dataset = Dataset.open(data)
    optimizer = "adam" if placement == "replicated" else "row_wise_adagrad"
    blueprint = Blueprint(HSTU(**MODEL), dataset.items, placement, optimizer, 1e-3, 0.05, 0.0, 5)  # type: ignore[arg-type]
    found, dense = assemble(blueprint, dataset.active(), torch.device("cpu"))
    before = {name: value.clone() for name, value in found.table.state().items() if value.ndim}
    notes = checkpoint.load(policy, found, dense)
    after = {name: value.tolist() for name, value in found.table.state().items() if value.ndim}
    return {
        "first": found.table.first,
        "notes": notes,
        "after": after,
        "before": {n: v.tolist() for n, v in before.items()},
    }


@pytest.mark.parametrize("placement", ["replicated", "row_wise"])
def test_old_rows_keep_their_state_and_new_ones_start_anew(
    data: str, newer: str, two_ranks: Ranks, tmp_path: Path, placement: str
) -> None:
    alone(planned(data, tmp_path / "old", table=placement, epochs=1))
    policy, saved = str(tmp_path / "old" / "policy" / "last"), tables(tmp_path / "old")
    parts = [[loaded(newer, policy, placement)]]
    if placement == "row_wise":
        parts.append(two_ranks(loaded, newer, policy, placement))
    for ranks_parts in parts:
        for part in ranks_parts:
            assert part["notes"] == [
                f"{NEW - OLD} items are new to the policy: their rows and optimizer state start anew"
            ]
            rows = {name: torch.tensor(value) for name, value in part["after"].items()}
            old = slice(0, min(len(rows["weight"]), OLD + 1 - part["first"]))
            there = slice(part["first"], part["first"] + old.stop)
            for name, value in rows.items():
                kind = "table" if name == "weight" else "table-optimizer"
                width = MODEL["width"] if name == "weight" else None
                mine = value[old, :width] if value.ndim == 2 else value[old]
                assert torch.equal(mine, saved[f"{kind}:{name}"][there]), name
                assert torch.equal(value[old.stop :], torch.tensor(part["before"][name])[old.stop :]), name


def test_posttraining_on_the_newer_data_runs_and_the_older_cannot_follow(data: str, newer: str, tmp_path: Path) -> None:
    alone(planned(data, tmp_path / "old", epochs=1))
    alone(planned(newer, tmp_path / "new", epochs=1, initial=str(tmp_path / "old"), protocol="refit"))
    assert checkpoint.read_state(str(tmp_path / "new" / "policy" / "last"))["items"] == NEW
    with pytest.raises(InputError, match="prepare the new one with vocabulary="):
        planned(data, tmp_path / "back", initial=str(tmp_path / "new" / "policy" / "last"))
