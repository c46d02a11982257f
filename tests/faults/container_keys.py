"""Temporary credentials as a container gets them: a loopback address from which AWS's clients fetch them themselves.

They are the server's own keys (SeaweedFS), with an end at which the clients must ask again.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from tests.faults.s3_server import KEYS

TOKEN = "canary-token"
"""By which the container identifies itself."""


class ContainerKeys:
    """Hands out ``secret`` for ``seconds`` to whoever brings TOKEN; ``fetched`` counts how often."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.secret, self.fetched = seconds, KEYS["AWS_SECRET_ACCESS_KEY"], 0
        keys = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers.get("Authorization") == TOKEN
                body = keys.answer() if known else b""
                self.send_response(200 if known else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self) -> bytes:
        self.fetched += 1
        end = datetime.now(UTC) + timedelta(seconds=self.seconds)
        answer = {"AccessKeyId": KEYS["AWS_ACCESS_KEY_ID"], "SecretAccessKey": self.secret, "Token": ""}
        return json.dumps({**answer, "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()

    def environment(self) -> dict[str, str]:
        """Variables of a process that has no keys but may fetch them."""
        address = f"http://127.0.0.1:{self.server.server_port}/keys"
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": address, "AWS_CONTAINER_AUTHORIZATION_TOKEN": TOKEN}


@contextlib.contextmanager
def container_keys(seconds: float) -> Iterator[ContainerKeys]:
    """Credentials that last ``seconds``, for the block."""
    running = ContainerKeys(seconds)
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()
