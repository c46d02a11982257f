"""Training and evaluation through Ray Train, on a real cluster of this machine with two workers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from tests.data import small_dataset
from tests.training.test_loop import planned

from retilt import storage
from retilt.cluster import evaluate, resources, session, train
from retilt.config import EvaluateConfig, TrainConfig, build
from retilt.types import InputError

MODEL = {"name": "hstu", "max_length": 20, "width": 10, "blocks": 1, "heads": 2, "head_width": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session.connect(cpus=2, dashboard=False):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    users = small_dataset.sequences(60, 50, longest=30)
    return small_dataset.write(str(tmp_path_factory.mktemp("data")), users, 50, lanes=2, shards=[[30, 30]])


def config(data: str, output: Path, **values: Any) -> TrainConfig:
    defaults = {"epochs": 2, "batch_users": 12, "workers": 2, "threads": 1, "table": "row_wise", "protocol": "refit"}
    if "initial" not in values:
        values["model"] = MODEL
    return build(TrainConfig, {"dataset": data, "output": str(output), **defaults, **values})


@pytest.fixture(scope="module")
def policies(cluster: None, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BC on two workers and Exp-RSFT from it on one, both by way of Ray Train."""
    folder = tmp_path_factory.mktemp("runs")
    train.run(config(data, folder / "bc"))
    train.run(config(data, folder / "exp", initial=str(folder / "bc"), algorithm={"name": "exp_rsft"}, workers=1))
    return folder


def test_a_run_leaves_what_it_promises(policies: Path) -> None:
    files = {file.path for file in storage.list_files(str(policies / "bc"))}
    assert {"run.json", "config.yaml", "metrics.jsonl", "result.json", "policy/last/manifest.json"} <= files
    assert "tensorboard/events.out.tfevents.retilt" in files
    records = [json.loads(line) for line in (policies / "bc" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if "seconds" in record] == [1, 2]
    assert not any(name.endswith((".pkl", ".pt", ".bin")) for name in files)


def test_the_same_command_again_prints_the_result(
    policies: Path, data: str, capsys: pytest.CaptureFixture[str], cluster: None
) -> None:
    before = {file.path: file.size for file in storage.list_files(str(policies / "bc"))}
    result = train.run(config(data, policies / "bc"))
    assert result["epochs"] == 2
    assert "policy/last" in capsys.readouterr().out
    assert before == {file.path: file.size for file in storage.list_files(str(policies / "bc"))}


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.run(config(data, tmp_path / "run"), dry_run=True) == {}
    shown = capsys.readouterr().out
    assert "60 users, 50 items" in shown
    assert "item table row_wise with row_wise_adagrad, exact softmax, 2 worker(s)" in shown
    assert re.search(r"\n  table +0 MB\n  optimizer +0 MB\n", shown)
    assert re.search(r"\n  together +\d{3} MB of \d+\.\d\d GB for each worker\n", shown)
    assert "rows of the table by TorchRec's planner: 26 on a worker, 25 on the last" in shown
    assert re.search(r"\na step: about \d\.\d{3} s \(compute \d\.\d{3}, update \d\.\d{3}, communication", shown)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_without_room_is_refused_before_anything_starts(data: str, tmp_path: Path, dry_run: bool) -> None:
    """Without a cluster: on this machine every worker could have more than is given here."""
    with pytest.raises(
        InputError, match=r"a worker needs about 0\.\d\d GB .*, but each of 2 has 0\.10 GB; no number of"
    ):
        train.run(config(data, tmp_path / "run", memory_per_worker=0.1), dry_run=dry_run)
    assert not list(tmp_path.glob("run/*"))


def test_more_workers_than_the_table_has_rows_for_are_refused(tmp_path: Path) -> None:
    users = small_dataset.sequences(12, 7, longest=9)
    few = small_dataset.write(str(tmp_path / "few"), users, 7, lanes=3, shards=[[4, 4, 4]])
    with pytest.raises(InputError, match="workers = 3, but a table of 7 items cannot be sharded over more than 2"):
        train.run(config(few, tmp_path / "run", workers=3))
    assert not (tmp_path / "run").exists()


def test_a_worker_has_its_part_of_the_memory_of_its_node(cluster: None) -> None:
    one, two = (resources.room_of_worker(workers, 1, False, None) for workers in (1, 2))
    assert one is not None
    assert two is not None
    assert one.host == pytest.approx(2 * two.host)
    assert 0 < one.host <= resources.USABLE * sum(ray.nodes()[0]["Resources"][name] for name in resources._MEMORY)
    given = resources.room_of_worker(2, 1, False, 5e9)
    assert given is not None
    assert given.host == 5e9


def test_the_memory_of_a_cluster_that_is_not_joined_yet_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    here = resources.room_of_worker(4, None, False, None)
    assert here is not None
    assert here.host == pytest.approx(resources.USABLE * resources.free_memory() / 4, rel=0.2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert resources.room_of_worker(4, None, False, None) is None


def test_evaluation_writes_metrics_report_and_plot(policies: Path, data: str, tmp_path: Path) -> None:
    """The contract of metrics.json, and the same numbers on one worker as on two."""
    reports = []
    for workers in (2, 1):
        output = tmp_path / str(workers)
        values: dict[str, Any] = {"policies": {"BC": str(policies / "bc"), "Exp-RSFT": str(policies / "exp")}}
        values |= {
            "workers": workers,
            "dataset": data,
            "output": str(output),
            "min_reward": 4.0,
            "threads": 1,
            "batch_users": 20,
        }
        evaluate.run(build(EvaluateConfig, values))
        assert {path.name for path in output.iterdir()} == {"metrics.json", "report.md", "metrics.png"}
        assert (output / "metrics.png").read_bytes().startswith(b"\x89PNG")
        reports.append(json.loads((output / "metrics.json").read_text()))
    report = reports[0]
    assert report["split"] == "last_k"
    assert (report["part"], report["protocol"], report["min_reward"], report["exclude_history"]) == (
        "test", "refit", 4.0, "all",
    )  # fmt: skip
    first, second = report["policies"]["BC"], report["policies"]["Exp-RSFT"]
    assert "versus_first" not in first
    for group in ("all", "high_reward", "untied"):
        assert first[group]["n"] == second[group]["n"] > 0
        for name in ("ndcg@10", "ndcg@50", "hr@10", "hr@50", "mrr"):
            found = first[group][name]
            assert found["low"] <= found["value"] <= found["high"]
            versus = second["versus_first"][group][name]
            assert set(versus) == {"value", "low", "high", "ratio", "ratio_low", "ratio_high"}
    assert first["all"]["n"] == 120
    assert close(reports[0]["policies"], reports[1]["policies"])


def test_the_summary_speaks_of_weights_where_there_are_any(data: str, tmp_path: Path) -> None:
    weights = {"ess_ratio": 0.355, "max_over_mean_weight": 12.34}
    result: dict[str, Any] = {"best": {"epoch": 2, "value": 0.1234}, "weights": weights}

    def first(given: dict[str, Any], **values: Any) -> str:
        one = planned(data, tmp_path / "run")
        algorithm = build(TrainConfig, {"dataset": data, "output": "o", "initial": "i", **values}).algorithm
        changed = replace(one, config=one.config.model_copy(update={"algorithm": algorithm}))
        return train.summarise(changed, {**result, "weights": given})[0]

    best = "best epoch 2: validation ndcg@10 0.1234"
    assert [first(weights, algorithm=name) for name in ("bc", "dpo", "ppo")] == [best] * 3
    said = "weights: effective sample size 0.355 of n, largest/mean 12.3"
    assert first(weights, algorithm="exp_rsft") == said
    trajectory = {"name": "exp_rsft", "level": "trajectory"}
    for correlation, more in ((0.98, "; correlation of returns with lengths +0.98"), (None, "")):
        returns = {"returns": {"correlation_length": correlation}}
        assert first({**weights, **returns}, algorithm=trajectory) == said + more


def close(one: Any, other: Any) -> bool:
    """Equal up to the order of float64 sums."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    return bool(one == (pytest.approx(other, rel=1e-9, abs=1e-12) if isinstance(other, float) else other))


def test_more_workers_than_the_cluster_has_fail_at_once(cluster: None, data: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=r"workers = 2 of 2 CPUs \(threads\) each, but the cluster has 2 CPUs"):
        train.run(config(data, tmp_path / "run", threads=2))
    assert time.monotonic() - started < 30
    assert not (tmp_path / "run").exists()


def test_a_place_that_no_other_process_sees_is_refused_before_anything_else(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="memory:// lives in one process"):
        train.run(config("memory://data", tmp_path / "run"))
    values = {"dataset": data, "policies": {"BC": "memory://bc"}, "output": str(tmp_path / "run")}
    with pytest.raises(InputError, match=r"policies\.BC = memory://bc: memory:// lives in one process"):
        evaluate.run(build(EvaluateConfig, values))


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"),
    [([2.0], 1, 2), ([2.0], 2, 1), ([2.0], 3, 0), ([4.0, 4.0], 3, 2), ([4.0, 1.0], 2, 2), ([], 1, 0)],
)
def test_threads_that_fit(cpus: list[float], workers: int, threads: int) -> None:
    assert resources.threads_that_fit(cpus, workers) == threads


def test_a_damaged_shard_found_by_a_worker_is_an_input_error(cluster: None, data: str, tmp_path: Path) -> None:
    """It comes back as what it is, at once, and not as a crash that Ray would restart."""
    for file in storage.list_files(data):
        storage.copy(storage.join(data, file.path), str(tmp_path / "data" / file.path))
    shard = tmp_path / "data" / "shards" / "part-00000.parquet"
    flipped = bytearray(shard.read_bytes())
    flipped[100] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(InputError, match=r"part-00000\.parquet: sha256 differs"):
        train.run(config(str(tmp_path / "data"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
