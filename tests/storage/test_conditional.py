"""Of several that write on the same condition exactly one succeeds."""

from __future__ import annotations

import os
import threading

import pytest
from tests.faults.s3_server import WEED

from retilt import storage
from retilt.types import InputError

KINDS = ["local", pytest.param("s3", marks=pytest.mark.skipif(WEED is None, reason="no SeaweedFS"))]


@pytest.fixture
def folder(request, tmp_path):
    """A new folder in a store of the kind that the test names."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return str(tmp_path / "a") if request.param == "local" else f"memory://{tmp_path.name}/a"


def together(count, action):
    """What ``action(number)`` returned to each of ``count`` threads that began at once."""
    answers, barrier = [None] * count, threading.Barrier(count)

    def one(number):
        barrier.wait()
        answers[number] = action(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("folder", [*KINDS, "memory"], indirect=True)
def test_create_read_and_replace(folder):
    uri = storage.join(folder, "b", "x")
    assert storage.read_tagged(uri) is None
    assert not storage.replace(uri, b"0", "tag")
    assert storage.create(uri, b"1")
    assert not storage.create(uri, b"2")
    data, tag = storage.read_tagged(uri)
    assert data == storage.read_bytes(uri) == b"1"
    assert storage.replace(uri, b"3", tag)
    assert not storage.replace(uri, b"4", tag)
    assert storage.read_tagged(uri)[0] == b"3"
    assert [file.path for file in storage.list_files(folder)] == ["b/x"]


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_of_those_that_create_one_succeeds(folder):
    for number in range(5):
        uri = storage.join(folder, str(number))
        answers = together(4, lambda mine, uri=uri: storage.create(uri, b"%d" % mine))
        assert sorted(answers) == [False, False, False, True]
        assert storage.read_bytes(uri) == b"%d" % answers.index(True)


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_a_counter_that_is_compared_and_swapped_loses_nothing(folder):
    uri = storage.join(folder, "counter")
    storage.create(uri, b"0 -")

    def count(mine):
        for turn in range(5):
            while True:
                data, tag = storage.read_tagged(uri)
                if storage.replace(uri, b"%d %d-%d" % (int(data.split()[0]) + 1, mine, turn), tag):
                    break

    together(4, count)
    assert storage.read_bytes(uri).split()[0] == b"20"
    assert [file.path for file in storage.list_files(folder)] == ["counter"]


def test_nothing_but_the_file_is_left_and_no_lock_is_listed(tmp_path):
    storage.create(str(tmp_path / "x"), b"1")
    storage.replace(str(tmp_path / "x"), b"2", storage.read_tagged(str(tmp_path / "x"))[1])
    assert os.listdir(tmp_path) == ["x"]
    (tmp_path / ".lease.json.lock").touch()
    assert [file.path for file in storage.list_files(str(tmp_path))] == ["x"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/x: cannot be written"):
        storage.create(str(tmp_path / "file" / "x"), b"1")
