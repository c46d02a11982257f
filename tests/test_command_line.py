"""Flags, files, overrides and their order; exit codes and the one line on stderr."""

from __future__ import annotations

from typing import Any

import pytest

from retilt.command_line import Parsed, guarded, job, parse
from retilt.config import EvaluateConfig, PrepareConfig, TrainConfig, config_hash, load_yaml
from retilt.types import InputError, StorageError, TrainingError

BASE = ["dataset=d", "output=o"]


def train(*argv: str, **options: Any) -> Parsed[TrainConfig]:
    return parse(TrainConfig, argv, prog="job", description="", **options)


def test_overrides_reach_nested_keys():
    config = train(*BASE, "model.width=32", "checkpoint.keep=5", "learning_rate=3e-4", "min_reward=4.5").config
    assert config.model is not None
    assert (config.model.width, config.checkpoint.keep, config.learning_rate, config.min_reward) == (32, 5, 3e-4, 4.5)


def test_the_order_of_a_section_and_its_keys_does_not_matter():
    one = train(*BASE, "algorithm=exp_rsft", "algorithm.temperature=2.0").config
    assert one == train("algorithm.temperature=2.0", "algorithm.name=exp_rsft", *BASE).config
    assert one.algorithm.name == "exp_rsft"


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("dataset: d\noutput: o\nseed: 1\nalgorithm: {name: exp_rsft, temperature: 1e-1}\n")
    config = train("--config", str(file), "seed=2", "seed=3", "algorithm.normalize=batch").config
    assert config.seed == 3
    assert config.algorithm.model_dump() == {**config.algorithm.model_dump(), "temperature": 0.1, "normalize": "batch"}


def test_another_algorithm_than_the_file_s_drops_the_file_s_settings_of_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("dataset: d\noutput: o\nalgorithm: {name: exp_rsft, temperature: 0.1}\n")
    assert train("--config", str(file), "algorithm=bc").config.algorithm.name == "bc"
    assert train("--config", str(file), "algorithm=exp_rsft").config.algorithm.temperature == 0.1


def test_a_file_may_name_the_algorithm_in_short(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("dataset: d\noutput: o\nalgorithm: exp_rsft\n")
    assert train("--config", str(file), "algorithm.temperature=0.25").config.algorithm.temperature == 0.25


def test_a_file_may_be_a_uri():
    from retilt import storage

    storage.write_bytes("memory://conf/c.yaml", b"dataset: d\noutput: o\n")
    assert train("--config", "memory://conf/c.yaml").config.dataset == "d"


def test_an_empty_file_is_an_empty_configuration(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("# nothing\n")
    assert train("--config", str(file), *BASE).config == train(*BASE).config


def test_a_glob_may_begin_with_a_star():
    assert parse(PrepareConfig, ["source=*.csv", "dataset=d"], prog="job", description="").config.source == "*.csv"


def test_lists_and_mappings():
    values = ["dataset=d", "output=o", "policies=[a,b]"]
    assert parse(EvaluateConfig, values, prog="", description="").config.policies == {"a": "a", "b": "b"}
    assert parse(EvaluateConfig, [*values[:2], "policies={x: a}"], prog="", description="").config.policies == {
        "x": "a"
    }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["dataset"], "'dataset' is not of the form key=value"),
        (["=3"], "'=3' is not of the form key=value"),
        (["--conifg", "x", *BASE], "--conifg"),
        (["--config"], "--config"),
        ([*BASE, "seed=[1"], "seed"),
        ([*BASE, "seed.x=1"], "seed"),
        ([*BASE, "epoch=3"], "unknown key 'epoch'; did you mean 'epochs'?"),
        ([*BASE, "temperature=0.5"], "did you mean 'algorithm.temperature' or 'model.temperature'?"),
        (["output=o"], "missing key 'dataset'"),
        ([*BASE, "learning_rate=fast"], "learning_rate = 'fast'"),
    ],
)
def test_errors_name_the_argument(argv, words):
    with pytest.raises(InputError) as caught:
        train(*argv)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n", "3\n", "1: 2\n", "a: [\n"])
def test_a_file_that_is_no_configuration_is_named(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        train("--config", str(file), *BASE)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        train("--config", "nowhere.yaml")


def test_required_and_refused_keys():
    with pytest.raises(InputError, match="missing key 'initial'"):
        train(*BASE, required=["initial"])
    with pytest.raises(InputError, match="initial: because"):
        train(*BASE, "initial=x", refused={"initial": "because"})
    assert train(*BASE, refused={"initial": "because"}).config.initial is None


def test_flags():
    plain, asked = train(*BASE), train("--dry-run", *BASE, "--print-config")
    assert (plain.dry_run, plain.print_config) == (False, False)
    assert (asked.dry_run, asked.print_config) == (True, True)


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as ended:
        train("--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "algorithm.temperature" in out
    assert "'auto', 'replicated' or 'row_wise'" in out


@pytest.mark.parametrize(("error", "code"), [(InputError, 2), (StorageError, 3), (TrainingError, 4)])
def test_an_error_becomes_one_line_and_its_exit_code(error, code, capsys):
    def fail() -> int:
        raise error("first\nsecond")

    assert guarded(fail) == code
    assert capsys.readouterr().err == "error: first second\n"


def test_an_interrupt_and_a_bug(capsys):
    def interrupt() -> int:
        raise KeyboardInterrupt

    def bug() -> int:
        raise RuntimeError("a bug keeps its traceback")

    assert guarded(interrupt) == 130
    with pytest.raises(RuntimeError, match="traceback"):
        guarded(bug)


def test_a_job_prints_its_configuration_without_acting(capsys):
    acted: list[object] = []
    code = job(
        TrainConfig, lambda config, dry: acted.append(dry), [*BASE, "--print-config"], prog="job", description=""
    )
    out = capsys.readouterr().out
    config = TrainConfig.model_validate(load_yaml(out, "stdout"))
    assert (code, acted, config) == (0, [], train(*BASE).config)
    assert f"# sha256 {config_hash(config)}" in out


def test_a_job_acts_and_says_whether_it_is_a_rehearsal():
    acted: list[object] = []
    assert job(TrainConfig, lambda _, dry: acted.append(dry), [*BASE, "--dry-run"], prog="job", description="") == 0
    assert job(TrainConfig, lambda _, dry: acted.append(dry), BASE, prog="job", description="") == 0
    assert acted == [True, False]
