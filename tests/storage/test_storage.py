"""Files by URI on the local file system and in memory."""

from __future__ import annotations

import errno
import os

import pytest

from retilt import storage
from retilt.types import InputError, StorageError


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """A new folder in each kind of store."""
    return str(tmp_path / "a") if request.param == "local" else f"memory://{tmp_path.name}/a"


def test_what_is_written_is_read_listed_and_deleted(folder):
    storage.write_bytes(storage.join(folder, "x", "b.bin"), b"123")
    storage.write_json(storage.join(folder, "a.json"), {"é": [1, 2.5]})
    assert storage.read_bytes(storage.join(folder, "x/b.bin")) == b"123"
    assert storage.read_json(storage.join(folder, "a.json")) == {"é": [1, 2.5]}
    assert [file.path for file in storage.list_files(folder)] == ["a.json", "x/b.bin"]
    assert storage.list_files(folder)[1].size == storage.size(storage.join(folder, "x/b.bin")) == 3
    assert storage.exists(folder)
    assert not storage.is_file(folder)
    storage.delete(folder)
    storage.delete(folder)
    assert not storage.exists(folder)
    assert storage.list_files(folder) == []


def test_a_file_that_is_not_finished_does_not_exist(folder):
    place = storage.join(folder, "x")
    storage.write_bytes(place, b"old")
    other = storage.join(folder, "y")

    def fail(uri):
        with storage.open_output(uri) as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail(other)
    assert not storage.exists(other)
    if storage.is_local(folder):
        with pytest.raises(KeyError):
            fail(place)
        assert storage.read_bytes(place) == b"old"
        assert os.listdir(folder) == ["x"]


def test_copy_between_stores_and_sha256(folder):
    storage.write_bytes(storage.join(folder, "x"), b"abc" * 1_000_000)
    storage.copy(storage.join(folder, "x"), storage.join(folder, "y"))
    assert storage.sha256(storage.join(folder, "y")) == storage.sha256(storage.join(folder, "x"))
    storage.write_bytes(storage.join(folder, "z"), b"abc")
    # The example of FIPS 180-2, appendix B.1.
    assert storage.sha256(storage.join(folder, "z")).startswith("ba7816bf8f01cfea")


def test_expand_takes_a_file_a_folder_and_globs(folder):
    for path in ("day=1/a.parquet", "day=2/b.parquet", "day=2/c.csv", "_SUCCESS", "day=2/.hidden"):
        storage.write_bytes(storage.join(folder, path), b"1")

    def names(source):
        return [uri.removeprefix(folder + "/") for uri in storage.expand(source)]

    assert names(f"{folder}/day=2/c.csv") == ["day=2/c.csv"]
    assert names(folder) == ["day=1/a.parquet", "day=2/b.parquet", "day=2/c.csv"]
    assert names(f"{folder}/*/*.parquet") == ["day=1/a.parquet", "day=2/b.parquet"]
    assert names(f"{folder}/**/[b-c].*") == ["day=2/b.parquet", "day=2/c.csv"]
    assert names(f"{folder}/day=?/a.parquet") == ["day=1/a.parquet"]
    for nothing in ("none", "*.parquet"):
        with pytest.raises(InputError, match=r"no such file|no file matches"):
            storage.expand(f"{folder}/{nothing}")


def test_what_is_missing_is_named(folder):
    for action in (storage.read_bytes, storage.size, storage.sha256, storage.expand):
        with pytest.raises(InputError, match="nothing"):
            action(storage.join(folder, "nothing"))


def test_json_that_is_none_is_named(tmp_path):
    storage.write_bytes(str(tmp_path / "x.json"), b"{")
    with pytest.raises(InputError, match=r"x\.json: not valid JSON"):
        storage.read_json(str(tmp_path / "x.json"))


def test_unreadable_uris(tmp_path):
    with pytest.raises(InputError, match="nosuch"):
        storage.read_bytes("nosuch://bucket/x")
    with pytest.raises(InputError, match="no bucket"):
        storage.read_bytes("s3://")
    with pytest.raises(InputError, match="three slashes"):
        storage.read_bytes("file://host/x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(InputError):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")


def test_a_folder_that_cannot_be_made_is_known_before_and_nothing_is_left(tmp_path):
    storage.require_writable(str(tmp_path / "a" / "b"))
    storage.require_writable("s3://bucket/a")
    (tmp_path / "file").write_text("x")
    for uri in (tmp_path / "file", tmp_path / "file" / "below", "/sys/retilt"):
        with pytest.raises(InputError, match="cannot be written"):
            storage.require_writable(str(uri))
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"x: cannot be written.*No space"), storage.open_output(str(tmp_path / "x")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(InputError, match="credentials") as caught:
        storage.read_bytes("s3://key:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_a_secret_never_reaches_a_message(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(StorageError) as caught, storage.reading("s3://bucket/x"):
        raise OSError("AWS Error NETWORK_CONNECTION: hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError, match="ACCESS_DENIED"), storage.reading("s3://bucket/x"):
        raise OSError("AWS Error ACCESS_DENIED during HeadObject")


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/") == f"{tmp_path}/a"
    assert storage.absolute("file:///a/b%20c") == "/a/b c"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.join("s3://bucket/a/", "/b/", "c") == "s3://bucket/a/b/c"
    assert storage.join("/", "a") == "/a"
    assert storage.parent("s3://bucket/a/b") == "s3://bucket/a"
    assert storage.name("s3://bucket/a/b/") == "b"


def test_a_whole_store_is_never_deleted():
    for uri in ("/", "s3://bucket", "s3://bucket/"):
        with pytest.raises(InputError, match="never deleted"):
            storage.delete(uri)
