"""A tally on storage: the same sums and the same statistics after reading, and refusals that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retilt.evaluation import tallies
from retilt.evaluation.metrics import metrics
from retilt.evaluation.statistics import Tally, summary
from retilt.types import DamagedError, InputError


def kept() -> Tally:
    found = Tally(("all", "untied"), 20, 7)
    user_P = torch.arange(40) // 2
    found.add(user_P, torch.stack([user_P >= 0, user_P % 2 == 0]), metrics(1 + user_P), user_P > 15)
    return found


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = kept()
    tallies.write(str(tmp_path / "t"), written, {"policy": "runs/x", "epoch": 3})
    read, identity = tallies.read(str(tmp_path / "t"))
    assert torch.equal(read.sums, written.sums)
    assert (read.groups, read.replicates, read.seed, read.names) == (("all", "untied"), 20, 7, written.names)
    assert summary(read, "untied") == summary(written, "untied")
    assert identity == {"policy": "runs/x", "epoch": 3}


def test_a_tally_of_other_metrics_keeps_their_names(tmp_path: Path) -> None:
    written = Tally(("all",), 20, 0, names=("training", "kl"))
    tallies.write(str(tmp_path), written, {})
    assert tallies.read(str(tmp_path))[0].names == ("training", "kl")


def test_no_tally_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tally here \(manifest.json is missing\)"):
        tallies.read(str(tmp_path / "none"))
    tallies.write(str(tmp_path), kept(), {})
    place = tmp_path / "sums.safetensors"
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    with pytest.raises(DamagedError, match=r"sums.safetensors: sha256 differs"):
        tallies.read(str(tmp_path))
