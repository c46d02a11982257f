"""How steps are found and done, and what is refused before a lane is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.data.small_dataset import MODEL
from tests.training.test_loop import Listener, alone, planned

from retilt import ranks
from retilt.cluster.lanes import Lane
from retilt.cluster.rank import Work
from retilt.config import EvaluateConfig, build
from retilt.types import InputError
from retilt.workflows import running
from retilt.workflows.steps import Evaluating, Measured, Predicting, Step, Trained, Training


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


class Here:
    """A lane whose only rank is this process."""

    def call(self, work: Work, arguments: Mapping[str, Any], *, checkpoints: bool) -> dict[str, Any]:
        ranks.single()
        return work(arguments, Listener())


def test_a_run_that_was_killed_on_its_way_further_is_found_and_ends_what_it_has_begun(
    data: str, tmp_path: Path
) -> None:
    """Resumed, a reproduction may ask for fewer epochs at first than the run was told, and had begun, before."""
    alone(planned(data, tmp_path / "bc", epochs=1))
    alone(planned(data, tmp_path / "bc", epochs=9), stop_after=3)
    step = Step("seed-0/refit/bc@2", Training(planned(data, tmp_path / "bc", epochs=2).config, None))
    assert running.look(step) == (False, None)
    done = running.do(step, cast(Lane, Here()), 1)
    assert isinstance(done, Trained)
    assert len(done.epochs) in (3, 4)  # the checkpoint of the last epoch was under way
    assert running.look(step) == (True, done)
    longer = Step("seed-0/refit/bc@9", Training(planned(data, tmp_path / "bc", epochs=9).config, None))
    assert running.look(longer) == (False, None)


def test_a_run_that_has_gone_on_is_not_evaluated_as_what_it_was(data: str, tmp_path: Path) -> None:
    alone(planned(data, tmp_path / "bc", epochs=2))
    values = {"dataset": data, "policies": {"bc": str(tmp_path / "bc")}, "output": str(tmp_path / "test")}
    what = Evaluating(build(EvaluateConfig, values), ("bc",), False, 1, "of one epoch")
    with pytest.raises(InputError, match=r"bc has gone on to 2 epochs, and its policy after 1 is to be evaluated: del"):
        running.do(Step("seed-0/select/bc/test", what), cast(Lane, Here()), 1)
    assert not (tmp_path / "test").exists()
    done = running.do(Step("seed-0/select/bc/test", replace(what, epochs=2)), cast(Lane, Here()), 1)
    assert isinstance(done, Measured)
    assert running.look(Step("seed-0/select/bc/test", replace(what, epochs=2))) == (True, done)
    assert running.look(Step("seed-0/select/bc/test", replace(what, identity="of other judges"))) == (False, None)
