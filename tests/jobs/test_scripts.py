"""The scripts as a user runs them, up to the point where they hand over to the package."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from retilt.config import load_yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "jobs" / "configs"
PREPARE = ["source=ml-100k", "dataset=d"]
PRETRAIN = ["dataset=d", "output=o"]
POSTTRAIN = [*PRETRAIN, "initial=p", "algorithm=exp_rsft"]
TRAIN_REWARD = [*PRETRAIN, "initial=p", "algorithm.variant=strong"]
EVALUATE = ["dataset=d", "output=o", "policies=[a,b]"]


def run(job: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *argv])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("job", "argv"),
    [
        ("prepare", PREPARE),
        ("simulate", ["output=o", "preset=books"]),
        ("pretrain", PRETRAIN),
        ("posttrain", POSTTRAIN),
        ("train_reward", TRAIN_REWARD),
        ("evaluate", EVALUATE),
        ("tune_lambda", [*PRETRAIN, "initial=p"]),
        ("reproduce", ["preset=ml-100k", "output=o"]),
    ],
)
def test_print_config(job, argv, monkeypatch, capsys):
    assert run(job, [*argv, "--print-config"], monkeypatch) == 0
    assert "# sha256 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("job", "argv", "words"),
    [
        ("posttrain", [*POSTTRAIN, "algorithm.temperature=0"], "algorithm.temperature = 0: must be greater than 0"),
        ("posttrain", [*POSTTRAIN, "algorithm.temperature=-1"], "must be greater than 0"),
        ("posttrain", [*PRETRAIN, "algorithm=bc"], "missing key 'initial'"),
        ("posttrain", [*PRETRAIN, "initial=p"], "missing key 'algorithm'"),
        ("pretrain", [*PRETRAIN, "initial=p"], "jobs/posttrain.py"),
        ("train_reward", PRETRAIN, "missing key 'initial'"),
        ("train_reward", [*TRAIN_REWARD, "algorithm.variant=weak"], "'paper' or 'strong'"),
        ("train_reward", [*PRETRAIN, "initial=p", "algorithm=bc"], "jobs/train_reward.py reward models"),
        ("pretrain", [*PRETRAIN, "epoch=3"], "did you mean 'epochs'?"),
        ("evaluate", ["dataset=d", "output=o"], "missing key 'policies'"),
        ("prepare", [*PREPARE, "columns.usr=x"], "did you mean 'columns.user'?"),
    ],
)
def test_a_wrong_key_or_value_ends_with_2_and_one_line(job, argv, words, monkeypatch, capsys):
    assert run(job, argv, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_algorithm_s_configuration_is_valid(file, monkeypatch, capsys):
    given = ["--config", str(file), "dataset=d", "output=o", "initial=p", "--print-config"]
    assert run("posttrain", given, monkeypatch) == 0, capsys.readouterr().err
    algorithm = load_yaml(capsys.readouterr().out, "here")["algorithm"]["name"]
    assert file.stem == algorithm or file.stem.startswith(f"{algorithm}_")  # an example of a variant


@pytest.mark.parametrize("preset", sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/*.yaml")))
def test_every_preset_is_a_whole_configuration_of_its_job(preset, monkeypatch, capsys):
    job = next((job for job in ("prepare", "pretrain", "evaluate") if f"/{job}" in preset), "posttrain")
    assert run(job, ["--config", str(CONFIGS / preset), "--print-config"], monkeypatch) == 0, capsys.readouterr().err
