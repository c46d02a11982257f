"""One run at a time writes to an output: whoever holds ``lease.json`` in it.

No clocks are compared. A holder on this machine is asked for at the kernel; any other is watched: it rewrites the file
every RENEW seconds, and one whose file stays the same for TTL seconds is taken for dead. One that was only asleep finds
out by ``require``, before each commit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retilt import storage
from retilt.types import InputError, RetiltError, TrainingError

LEASE = "lease.json"
RENEW = 10.0
"""Seconds between two renewals."""
TTL = 40.0
"""Seconds without a renewal after which a holder is taken for dead."""

_log = logging.getLogger("retilt.lease")


class Lease:
    """A held lease; ``hold`` makes it."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.token = secrets.token_hex(16)
        self._content: dict[str, Any] = {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "renewals": 0,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether the renewal found that another run holds it, or could not renew it for TTL / 2 seconds."""
        return self._lost

    def data(self) -> bytes:
        """What the file holds."""
        return (json.dumps(self._content, indent=1) + "\n").encode()

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def end(self) -> None:
        """Stop renewing, and delete the file if it is still ours; a store that fails leaves it to the next run."""
        self._ended.set()
        self._thread.join()
        try:
            # Nobody takes over between these two: they would have to have watched for TTL what was renewed just now.
            with storage.within(TTL / 2):
                if _token(storage.read_tagged(self.place)) == self.token:
                    storage.delete(self.place)
        except RetiltError as problem:
            _log.warning("%s; the next run finds the lease left behind, and that its holder is gone", problem)

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(RENEW):
            try:
                with storage.within(max(0.0, renewed + TTL / 2 - time.monotonic())):
                    self._lost = not self._renew()
                renewed = time.monotonic()
            except RetiltError as problem:
                self._lost = time.monotonic() >= renewed + TTL / 2
                _log.warning("%s; the lease was not renewed", problem)
            if self._lost:
                _log.warning("%s: lost; another run may write here", self.place)
                return

    def _renew(self) -> bool:
        found = storage.read_tagged(self.place)
        if found is None or _token(found) != self.token:
            return False
        self._content["renewals"] += 1
        return storage.replace(self.place, self.data(), found[1])


@contextlib.contextmanager
def hold(output: str) -> Iterator[Lease]:
    """Hold ``<output>/lease.json`` inside the block; renewed in the background, deleted at the end.

    ``output`` need not exist. A holder that cannot be asked for is watched for up to TTL seconds.

    Raises:
        InputError: another run holds it; says which, since when, and what to do.
        StorageError: the store failed.
    """
    lease = Lease(storage.join(output, LEASE))
    new, process = not storage.exists(output), os.getpid()
    _acquire(output, lease)
    lease.start()
    try:
        yield lease
    finally:
        if os.getpid() == process:  # not in a fork of the holder, which has no lease
            lease.end()
            if new and storage.is_local(output):
                with contextlib.suppress(OSError):  # something was written
                    os.rmdir(storage.absolute(output))


def require(output: str, token: str) -> None:
    """Refuse to go on where the lease of ``output`` is no longer the one with ``token``; ask before each commit.

    Raises:
        TrainingError: another run has taken over, so this one must not write any more.
        StorageError: the store failed.
    """
    found = storage.read_tagged(storage.join(output, LEASE))
    if _token(found) != token:
        holder = _holder(found[0]) if found else {}
        other = f"{_words(holder)} has taken over" if holder else f"{LEASE} is gone"
        raise TrainingError(f"{output}: this run no longer holds the output ({other}), so it writes nothing more")


def _acquire(output: str, lease: Lease) -> None:
    while not storage.create(lease.place, lease.data()):
        found = storage.read_tagged(lease.place)
        if found is None:
            continue  # given back meanwhile
        holder = _holder(found[0])
        alive = _alive(holder)
        if alive is None:
            alive = _watch(lease.place, found[0])
        if alive:
            raise InputError(
                f"{output}: {_words(holder)} writes here; wait until it has ended, stop it, or give another output="
            )
        if storage.replace(lease.place, lease.data(), found[1]):
            return


def _watch(place: str, content: bytes) -> bool:
    """Whether a lease changes within TTL seconds; at once False where it is given back."""
    end = time.monotonic() + TTL
    while time.monotonic() < end:
        time.sleep(min(1.0, TTL / 20))
        found = storage.read_tagged(place)
        if found is None or found[0] != content:
            return found is not None
    return False


def _holder(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {"host": "an unknown host"}


def _token(found: tuple[bytes, str] | None) -> Any:
    return _holder(found[0]).get("token") if found else None


def _words(holder: dict[str, Any]) -> str:
    return f"another run (process {holder.get('pid', '?')} on {holder.get('host')}, since {holder.get('started', '?')})"


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process runs; None where it is not of this machine, or cannot be known."""
    pid = holder.get("pid")
    # The name alone would not do: containers of one name have different processes.
    if (holder.get("host"), holder.get("machine")) != (socket.gethostname(), _machine()) or type(pid) is not int:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    start = _process_start(pid)
    return None if start is None else start == holder.get("process_start")


def _machine() -> str:
    """This boot of this machine, and the container: where process ids and their start times mean something."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; -1 of one that has ended, None where it is not shown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])
