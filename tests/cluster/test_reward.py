"""jobs/train_reward.py as a whole: a reward model, its audit beside predictors that know no sequence, found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data import small_dataset
from tests.training.test_loop import alone, planned

from retilt.cluster import reward, session
from retilt.config import TrainConfig, build
from retilt.evaluation.audit import BASELINES, ERRORS


@pytest.mark.slow
def test_a_reward_model_is_trained_audited_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = small_dataset.sequences(60, 50, longest=30)
    data = small_dataset.write(str(tmp_path / "data"), users, 50, lanes=2, shards=[[30, 30]])
    alone(planned(data, tmp_path / "bc", epochs=1))
    config = build(
        TrainConfig,
        {
            "dataset": data, "initial": str(tmp_path / "bc"), "output": str(tmp_path / "rm"), "epochs": 1, "workers": 2,
            "batch_users": 12, "table": "row_wise", "threads": 1,
            "algorithm": {"name": "reward_model", "variant": "strong"},
        },
    )  # fmt: skip
    with session.connect(cpus=2, dashboard=False):
        found = reward.run(config)
        shown = capsys.readouterr().out
        written = json.loads((tmp_path / "rm" / reward.AUDIT).read_text())
        assert written["part"] == "test"
        assert set(written["audit"]) == {"strong", *BASELINES}
        for error in ERRORS:
            assert 0 < written["audit"]["strong"][error]["value"] < 16
            assert written["audit"]["strong"]["versus_item_mean"][error]["low"] is not None
        # Rewards that are drawn from nothing: whatever was found worse than their mean is said aloud.
        assert [line for line in shown.splitlines() if "WARNING" in line] == [
            f"WARNING: {each}" for each in written["warnings"]
        ]
        assert str(tmp_path / "rm" / reward.AUDIT) in shown

        again = reward.run(config)
    assert again["audit"] == written["audit"] == json.loads(json.dumps(found["audit"]))
    assert "done in" not in capsys.readouterr().out
