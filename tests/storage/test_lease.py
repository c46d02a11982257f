"""One run at a time: processes that race for an output, and holders that die, sleep or live on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.faults.s3_server import WEED

from retilt import lease, storage
from retilt.types import InputError, TrainingError

CHILD = """
import sys, time
from retilt import lease
from retilt.types import InputError
lease.RENEW, lease.TTL = 0.2, 1.0
for line in sys.stdin:
    output, seconds = line.split()
    try:
        with lease.hold(output) as held:
            print("held", held.token, flush=True)
            sys.stdin.readline() if seconds == "wait" else time.sleep(float(seconds))
        print("end", held.lost, flush=True)
    except InputError as problem:
        print("refused", problem, flush=True)
"""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.skipif(WEED is None, reason="no SeaweedFS"))])
def place(request, tmp_path):
    """An output that does not exist yet, in each kind of store; the environment holds the keys."""
    return (
        str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("bucket") + f"/{tmp_path.name}"
    )


@pytest.fixture
def start(bucket):
    """Starts processes that take leases; they end with the test."""
    running = []

    def child():
        running.append(subprocess.Popen([sys.executable, "-c", CHILD], stdin=-1, stdout=-1, text=True, bufsize=1))
        return running[-1]

    yield child
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.2)
    monkeypatch.setattr(lease, "TTL", 1.0)


def tell(process, *words):
    process.stdin.write(" ".join(words) + "\n")


def foreign(place, **changes):
    """Make the lease that of a process on another host."""
    uri = storage.join(place, lease.LEASE)
    content, tag = storage.read_tagged(uri)
    value = json.loads(content) | {"host": "elsewhere", "machine": "another boot"} | changes
    assert storage.replace(uri, json.dumps(value).encode(), tag)
    return value


def test_of_two_processes_exactly_one_holds(place, start):
    children = [start(), start()]
    for number in range(20):
        for child in children:
            tell(child, storage.join(place, str(number)), "wait")
        answers = [child.stdout.readline().split(maxsplit=1) for child in children]
        assert sorted(answer[0] for answer in answers) == ["held", "refused"]
        holder = children[[answer[0] for answer in answers].index("held")]
        assert f"process {holder.pid} on" in dict(answers)["refused"]
        tell(holder, "done")
        assert holder.stdout.readline().split() == ["end", "False"]
    assert storage.list_files(place) == []


def test_a_killed_holder_of_this_host_is_followed_at_once(place, start, monkeypatch):
    monkeypatch.setattr(lease, "TTL", 60.0)
    holder = start()
    tell(holder, place, "wait")
    assert holder.stdout.readline().startswith("held")
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    started = time.monotonic()
    with lease.hold(place) as held:
        assert time.monotonic() - started < 2
        lease.require(place, held.token)


def test_a_lease_whose_process_id_was_given_to_another_is_taken_over(place):
    place_of_lease = storage.join(place, lease.LEASE)
    stale = lease.Lease(place_of_lease)
    value = json.loads(stale.data())
    storage.write_json(place_of_lease, value | {"process_start": value["process_start"] - 1})
    with lease.hold(place) as held:
        lease.require(place, held.token)


def test_a_sleeper_of_another_host_is_followed_after_a_while_and_may_not_commit(place, start):
    holder = start()
    tell(holder, place, "wait")
    token = holder.stdout.readline().split()[1]
    holder.send_signal(signal.SIGSTOP)
    foreign(place)
    started = time.monotonic()
    with lease.hold(place) as held:
        assert 1 <= time.monotonic() - started < 4
        lease.require(place, held.token)
        with pytest.raises(TrainingError, match=rf"process {os.getpid()} on .* has taken over"):
            lease.require(place, token)
        holder.send_signal(signal.SIGCONT)
        time.sleep(1)
        tell(holder, "done")
        assert holder.stdout.readline().split() == ["end", "True"]
        assert not held.lost
        lease.require(place, held.token)  # the sleeper has not deleted what is not its own
    with pytest.raises(TrainingError, match="is gone"):
        lease.require(place, held.token)


def test_a_holder_elsewhere_that_renews_is_left_alone(place):
    storage.write_json(storage.join(place, lease.LEASE), json.loads(lease.Lease(place).data()))
    value = foreign(place, pid=7)
    timer = threading.Timer(0.3, foreign, (place,), {"renewals": 1, "pid": 7})
    timer.start()
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"process 7 on elsewhere, since {value['started'][:10]}.*give another"):
        lease.hold(place).__enter__()
    assert time.monotonic() - started < 1
    timer.join()
    assert [file.path for file in storage.list_files(place)] == [lease.LEASE]


def test_a_lease_that_cannot_be_renewed_is_lost(tmp_path):
    with lease.hold(str(tmp_path / "run")) as held:
        (tmp_path / "run" / lease.LEASE).unlink()
        time.sleep(0.6)
        assert held.lost
    assert not (tmp_path / "run").exists()


def test_a_lease_is_renewed_and_leaves_what_was_written(place):
    with lease.hold(place) as held:
        storage.write_bytes(storage.join(place, "x"), b"1")
        time.sleep(1.5)
        assert not held.lost
        assert storage.read_json(storage.join(place, lease.LEASE))["renewals"] >= 2
        with pytest.raises(InputError, match="another run"), lease.hold(place):
            pass
    assert [file.path for file in storage.list_files(place)] == ["x"]


def test_a_damaged_lease_is_taken_over_after_a_while(tmp_path):
    (tmp_path / lease.LEASE).write_bytes(b"{")
    with lease.hold(str(tmp_path)) as held:
        lease.require(str(tmp_path), held.token)
    assert os.listdir(tmp_path) == []
