"""What is refused before a lane is asked."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from tests.training.test_loop import alone, planned

from retilt.cluster.lanes import Lane
from retilt.types import InputError
from retilt.workflows import running
from retilt.workflows.steps import Predicting, Step


def test_draws_from_a_policy_of_a_sampled_softmax_are_refused(data: str, tmp_path: Path) -> None:
    alone(planned(data, tmp_path / "bc", epochs=1, softmax="sampled"))
    paper = {"name": "reward_model", "variant": "paper"}
    alone(planned(data, tmp_path / "rm", epochs=1, initial=str(tmp_path / "bc"), algorithm=paper))
    what = Predicting(data, str(tmp_path / "rm"), str(tmp_path / "bc"), str(tmp_path / "new"), {})
    with pytest.raises(InputError, match="its catalogue is too large to draw from at every trained position"):
        running.do(Step("seed-0/data/exp_rsft_advantage", what), cast(Lane, None), 1)
    assert not (tmp_path / "new").exists()
