"""The first losses of one fixed run for every algorithm, backbone and placement, against those in golden.json.

A refactor leaves them as they are; a change of the arithmetic that is meant regenerates them and says so in its commit:
``python tests/training/test_golden.py``. They are compared to 1e-4 relative and not to the bit, because processors
round differently: BLAS picks its kernels, and with them the order of summation, by what the processor can do.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.data import small_dataset

from retilt import ranks
from retilt.config import TrainConfig, build
from retilt.training import loop
from retilt.training.run import plan_run

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 10
CURVES: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in ("bc", "rsft", "exp_rsft", "top_rated")},
    # Few positions: a draw that another processor's rounding decides otherwise would change the rest of the curve.
    "dpo": {"algorithm": {"name": "dpo", "contexts": 4}},
    # Nor can a curve be compared whose updates are so many or so large that they blow rounding up a thousandfold.
    "ppo": {"algorithm": {"name": "ppo", "contexts": 2, "passes": 2}, "table_learning_rate": 0.005},
    "reward_model": {"algorithm": {"name": "reward_model", "variant": "strong"}},
    "sasrec": {"model": {"name": "sasrec", "max_length": 20, "width": 10, "heads": 2, "feedforward_width": 20}},
}
STARTED = ("reward_model", "dpo", "ppo")
"""Those that start from a policy: one epoch of bc."""
TAUGHT = ("dpo", "ppo")
"""Those that learn from a reward model: one epoch on that policy."""
PLACEMENTS = ("replicated", "row_wise")
RUN: dict[str, Any] = {
    "model": {"name": "hstu", "max_length": 20, "width": 10, "blocks": 2, "heads": 2, "head_width": 4},
    "epochs": 2,
    "batch_users": 12,
    "protocol": "refit",
    "dropout": 0.1,
    "seed": 0,
    "log_every": 1,
    "device": "cpu",
}


class Losses:
    """A reporter that keeps the loss of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def progress(self, update: Mapping[str, Any]) -> None:
        if "loss" in update and "epoch_done" not in update:
            self.found.append(update["loss"])

    def report(self, metrics: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> bool:
        return False


def curve(name: str, placement: str, folder: Path) -> list[float]:
    """Losses of the first steps; the data are random with a fixed seed, 60 users and 50 items."""
    users = small_dataset.sequences(60, 50, longest=30)
    data = small_dataset.write(str(folder / "data"), users, 50, lanes=3, shards=[[11, 9, 10], [10, 10, 10]])
    ranks.single()
    values = {**RUN, "dataset": data, "output": str(folder / "run"), "table": placement, **CURVES[name]}
    first = {**RUN, "dataset": data, "table": placement, "epochs": 1}
    if name in STARTED:
        values["initial"] = str(folder / "bc")
        losses_of({**first, "output": values["initial"]})
    if name in TAUGHT:
        values["reward_model"] = str(folder / "rewards")
        started = {"initial": values["initial"], "algorithm": "reward_model"}
        losses_of({**first, **started, "output": values["reward_model"]})
    return losses_of(values)[:STEPS]


def losses_of(values: Mapping[str, Any]) -> list[float]:
    """Those of all steps of a run."""
    losses = Losses()
    loop.train(plan_run(build(TrainConfig, dict(values))).task(), losses)
    return losses.found


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", CURVES)
def test_the_losses_are_those_kept(name: str, placement: str, tmp_path: Path) -> None:
    kept = json.loads(GOLDEN.read_text())[name][placement]
    assert len(kept) == STEPS
    assert curve(name, placement, tmp_path) == pytest.approx(kept, rel=1e-4)


def regenerate() -> None:
    """Write golden.json anew."""
    golden: dict[str, dict[str, list[float]]] = {}
    for name in CURVES:
        golden[name] = {}
        for placement in PLACEMENTS:
            with tempfile.TemporaryDirectory() as folder:
                golden[name][placement] = [float(f"{x:.8g}") for x in curve(name, placement, Path(folder))]
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    regenerate()
