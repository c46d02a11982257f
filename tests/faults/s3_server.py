"""A real S3 server (SeaweedFS) on this machine."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

WEED = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
BUCKET = "bkt"
KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
_SERVICES = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free, as is each + 10000, which weed opens too.

    From 20000 to 22767: Ray's workers use 10002-19999, and from 32768 on the kernel gives ports to anybody.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 22768), 2768):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports from 20000 to 22767")


class S3Server:
    """One ``weed mini`` with an empty bucket."""

    def __init__(self, folder: str) -> None:
        ports = dict(zip(_SERVICES, free_ports(len(_SERVICES)), strict=True))
        self.port = ports["s3.port"]
        options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-bucket={BUCKET}", f"-dir={folder}"]
        options += ["-s3.autoCreateBucket=false"]  # as Amazon: writing to a bucket that does not exist is refused
        self.process = subprocess.Popen(
            [str(WEED), "-logtostderr=true", "mini", *options, *(f"-{name}={port}" for name, port in ports.items())],
            env=os.environ | KEYS | {"GOMEMLIMIT": "256MiB"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def environment(self, port: int | None = None) -> dict[str, str]:
        """The keys and the endpoint, of the server or of a proxy before it, as environment variables."""
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}", "AWS_REGION": "us-east-1"}

    def wait(self) -> None:
        """Until it answers and has its bucket, which comes a moment later; TimeoutError after 30 seconds."""
        key, secret = KEYS.values()
        address = f"127.0.0.1:{self.port}"
        client = pafs.S3FileSystem(
            access_key=key, secret_key=secret, endpoint_override=address, scheme="http", region="us-east-1"
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{address}/healthz", timeout=2):
                    pass
                if client.get_file_info(BUCKET).type == pafs.FileType.Directory:
                    return
            except OSError:  # URLError is one
                pass
            time.sleep(0.05)
        raise TimeoutError("the S3 server did not start")

    def stop(self) -> None:
        """At once; what it stored is thrown away with its folder."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def s3_server(folder: str | Path) -> Iterator[S3Server]:
    """A server that keeps its files in ``folder``, and ends with the block. It sets nothing in the environment."""
    server = S3Server(str(folder))
    try:
        server.wait()
        yield server
    finally:
        server.stop()
