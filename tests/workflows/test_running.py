"""What is refused before a lane is asked."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from tests.data.small_dataset import MODEL
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


def test_draws_after_other_histories_than_the_reward_model_reads_are_refused(data: str, tmp_path: Path) -> None:
    for name, length in (("bc", 20), ("long", 21)):
        alone(planned(data, tmp_path / name, epochs=1, model={**MODEL, "max_length": length}))
    paper = {"name": "reward_model", "variant": "paper"}
    alone(planned(data, tmp_path / "rm", epochs=1, initial=str(tmp_path / "bc"), algorithm=paper))
    what = Predicting(data, str(tmp_path / "rm"), str(tmp_path / "long"), str(tmp_path / "new"), {})
    with pytest.raises(InputError, match=r"reads histories of up to 20 events, and .*long.* up to 21; use a reward"):
        running.do(Step("seed-0/data/exp_rsft_advantage", what), cast(Lane, None), 1)
