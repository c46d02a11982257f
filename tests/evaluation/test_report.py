"""The report: the documented JSON, and views that say the same numbers."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from retilt.evaluation import markdown, report
from retilt.evaluation.metrics import NAMES, metrics
from retilt.evaluation.report import Evaluated
from retilt.evaluation.statistics import Tally

MANIFEST = {"name": "toy", "fingerprint": "d" * 64, "split": {"name": "last_k", "k": 10}}
GROUPS = ("all", "high_reward", "untied")


def evaluated(strength: float, groups=GROUPS, users: int = 120, **identity: str) -> Evaluated:
    """A simulated policy: a larger strength ranks every target higher."""
    source = np.random.default_rng(0)
    user_P = torch.from_numpy(np.repeat(np.arange(users), 5))
    scale_U = np.exp(source.normal(3.5, 1, users))
    rank_P = torch.from_numpy(1 + source.exponential(scale_U[user_P] / strength).astype(np.int64))
    found = Tally(groups, 300, 0)
    members = {"all": user_P >= 0, "high_reward": torch.arange(len(user_P)) % 3 == 0, "untied": user_P % 2 == 0}
    found.add(user_P, torch.stack([members[group] for group in groups]), metrics(rank_P), rank_P > 10**6)
    return Evaluated(found, {"uri": "runs/x", "fingerprint": "f" * 64, "protocol": "refit", **identity})


def build(policies: dict[str, Evaluated], min_reward: float | None = 4.5) -> dict[str, Any]:
    return report.build(
        policies, dataset=MANIFEST, dataset_uri="data/toy", part="test", min_reward=min_reward,
        exclude_history="all", command="python jobs/evaluate.py dataset=data/toy",
    )  # fmt: skip


def shown(found: dict[str, Any]) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(markdown.console_table(found))
    return capture.get()


@pytest.fixture(scope="module")
def three() -> dict[str, Any]:
    return build({"bc": evaluated(1.0), "same": evaluated(1.0), "exp_rsft": evaluated(1.6)})


def test_keys_are_the_documented_ones(three: dict[str, Any]) -> None:
    head = {name: three[name] for name in ("dataset", "split", "part", "protocol", "min_reward", "exclude_history")}
    assert list(head.values()) == ["toy", "last_k", "test", "refit", 4.5, "all"]
    bc, better = three["policies"]["bc"], three["policies"]["exp_rsft"]
    assert list(bc) == list(GROUPS)
    assert list(better) == [*GROUPS, "versus_first"]
    for group in GROUPS:
        assert list(bc[group]) == ["n", "users", "share_never_trained", *NAMES]
        assert isinstance(bc[group]["n"], int)
        assert list(bc[group]["ndcg@10"]) == ["value", "low", "high"]
        assert list(better["versus_first"][group]) == list(NAMES)
        paired = ["value", "low", "high", "ratio", "ratio_low", "ratio_high"]
        assert list(better["versus_first"][group]["mrr"]) == paired
    assert (bc["all"]["n"], bc["high_reward"]["n"], bc["untied"]["n"]) == (600, 200, 300)


def test_differences_are_those_of_the_values(three: dict[str, Any]) -> None:
    bc, better = three["policies"]["bc"]["all"]["mrr"], three["policies"]["exp_rsft"]["all"]["mrr"]
    found = three["policies"]["exp_rsft"]["versus_first"]["all"]["mrr"]
    assert found["value"] == pytest.approx(better["value"] - bc["value"], rel=1e-12)
    assert found["ratio"] == pytest.approx(better["value"] / bc["value"], rel=1e-12)
    assert 0 < found["low"] < found["value"] < found["high"]
    assert 1 < found["ratio_low"] < found["ratio"] < found["ratio_high"]


def test_identities_say_what_ran_and_how_to_repeat_it(three: dict[str, Any]) -> None:
    identity = three["identity"]
    assert identity["dataset"] == {"uri": "data/toy", "fingerprint": "d" * 64}
    assert identity["policies"]["bc"]["fingerprint"] == "f" * 64
    assert identity["bootstrap"] == {"level": 0.95, "replicates": 300, "seed": 0, "unit": "user"}
    assert identity["command"].startswith("python jobs/evaluate.py")
    assert set(identity["code"]) == {"retilt", "source_sha256", "torch"}


def test_files_hold_the_same_report(three: dict[str, Any], tmp_path: Path) -> None:
    report.write(str(tmp_path / "report"), three)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == three
    text = (tmp_path / "report" / "report.md").read_text()
    assert "](metrics.png)" in text
    picture = (tmp_path / "report" / "metrics.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert 1500 < width < 2500
    assert 500 < height < 1800


def test_markdown_states_verdicts_and_numbers(three: dict[str, Any]) -> None:
    text = markdown.render(three, "metrics.png")
    assert "- exp_rsft: better than bc in NDCG@10 on targets with a reward of at least 4.5: +0." in text
    assert "- same: no difference from bc was shown in NDCG@10" in text
    value = three["policies"]["exp_rsft"]["untied"]["hr@50"]["value"]
    assert f"{value:.4f}" in text
    assert text.count("| better |") == 15
    assert text.count("| no difference |") == 15
    assert "200 targets of 120 users" in text
    assert "Warning" not in text
    assert "python jobs/evaluate.py dataset=data/toy" in text


def test_markdown_cells_cannot_break_the_table() -> None:
    text = markdown.render(build({"a|b": evaluated(1.0), "$c": evaluated(2.0)}), "metrics.png")
    assert "| a\\|b |" in text


def test_console_table_fits_and_shows_the_verdict(three: dict[str, Any]) -> None:
    text = shown(three)
    assert max(map(len, text.splitlines())) <= 80
    assert "toy, test part, targets with a reward of at least 4.5 (n = 200)" in text
    assert "better" in text
    assert "no difference" in text
    assert f"{three['policies']['bc']['high_reward']['ndcg@10']['value']:.4f}" in text


def test_one_policy_without_threshold_and_an_empty_group(tmp_path: Path) -> None:
    empty = Tally(("all", "untied"), 300, 0)
    user_P = torch.arange(40)
    members = torch.stack([user_P >= 0, user_P < 0])
    empty.add(user_P, members, metrics(user_P + 1), user_P < 0)
    found = build({"bc": Evaluated(empty, {"fingerprint": "f", "protocol": "select"})}, min_reward=None)
    assert list(found["policies"]["bc"]) == ["all", "untied"]
    assert found["policies"]["bc"]["untied"]["mrr"] == {"value": None, "low": None, "high": None}
    assert found["min_reward"] is None
    report.write(str(tmp_path), found)
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert "nan" not in (tmp_path / "report.md").read_text().lower()
    assert f"{found['policies']['bc']['all']['mrr']['value']:.4f}" in shown(found)


def test_nothing_was_evaluated_still_makes_a_report(tmp_path: Path) -> None:
    nothing = Evaluated(Tally(("all", "untied"), 300, 0), {"fingerprint": "f", "protocol": "select"})
    found = build({"a": nothing, "b": Evaluated(Tally(("all", "untied"), 300, 0), nothing.identity)}, min_reward=None)
    report.write(str(tmp_path), found)
    assert "b: too few users to compare it with a" in (tmp_path / "report.md").read_text()


def test_warnings_are_shown() -> None:
    bc, select = evaluated(1.0, users=20), {"fingerprint": "g", "protocol": "select"}
    found = build({"bc": bc, "other": Evaluated(bc.tally, select, ["unverified: …"])})
    assert found["protocol"] == "mixed"
    assert found["warnings"][0] == "other: unverified: …"
    assert any("protocols differ (bc refit, other select)" in each for each in found["warnings"])
    assert any("high_reward has 20 users only" in each for each in found["warnings"])
    assert all(each in markdown.render(found, "metrics.png") for each in found["warnings"])


def test_code_version_is_stable() -> None:
    assert report.code_version() == report.code_version.__wrapped__()
