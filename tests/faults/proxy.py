"""An HTTP proxy that fails as stores and networks do, on demand and by a seed. Requests pass through unchanged.

A client signs for the host that it calls, so it must be given the proxy's address, and the server must believe the
Host header that it gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

from tests.faults.s3_server import free_ports

ANSWERS = {
    "slow_down": (b"503 Slow Down", b"SlowDown", b"Please reduce your request rate."),
    "expired": (b"400 Bad Request", b"ExpiredToken", b"The provided token has expired."),
    "damaged": (b"400 Bad Request", b"BadDigest", b"The checksum did not match what was received."),
}
"""Status, code and message of the faults that are answers of a store."""


class Proxy:
    """A proxy on ``port`` in a thread of its own; ``counts`` says how often it has done what.

    With ``tls`` its clients speak https.
    """

    def __init__(self, upstream: int, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.port = free_ports(1)[0]
        self.counts: Counter[str] = Counter()
        self._upstream, self._tls = upstream, tls
        self._random = random.Random(seed)
        self._chances: dict[str, float] = {}
        self._next: list[str] = []
        self._frozen_until = 0.0
        self._clients: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._back: threading.Timer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listen()

    def fail(self, **chances: float) -> None:
        """From now on each request fails with these chances: ANSWERS, ``reset``, ``truncate``, ``flip``."""
        self._chances, self._next = chances, []

    def fail_next(self, *faults: str) -> None:
        """The next requests that can fail so do, one after another (``""``: not this one); then all is well."""
        self._chances, self._next = {}, list(faults)

    def freeze(self, seconds: float) -> None:
        """Answer nothing for a while; what was asked is answered afterwards."""
        self.counts["freeze"] += 1
        self._frozen_until = time.monotonic() + seconds

    def outage(self, seconds: float) -> None:
        """Refuse connections for a while, and end those that stand."""
        self.counts["outage"] += 1
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._back = threading.Timer(seconds, self._listen)
        self._back.daemon = True
        self._back.start()

    def stop(self) -> None:
        """End the proxy and its thread."""
        if self._back is not None:
            self._back.cancel()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _listen(self) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)

        asyncio.run_coroutine_threadsafe(start(), self._loop).result()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            _reset(client)
        await asyncio.sleep(0.01)

    def _fault(self, possible: tuple[str, ...]) -> str | None:
        if self._next:
            return (self._next.pop(0) or None) if self._next[0] in ("", *possible) else None
        drawn = self._random.random()
        for fault in sorted(self._chances):
            if drawn < self._chances[fault]:
                return fault if fault in possible else None
            drawn -= self._chances[fault]
        return None

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._clients.add(client)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(reader, client, upstream_reader, upstream):
                    pass
            upstream.close()
        finally:
            self._clients.discard(client)
            client.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        method = head.split(b" ", 1)[0]
        if _header(head, b"expect"):
            client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        possible = (*ANSWERS, "reset", *(("truncate", "flip") if method == b"GET" else ()))
        fault = self._fault(possible)
        if fault:
            self.counts[fault] += 1
        body = await _body(reader, head)
        while (wait := self._frozen_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if fault in ANSWERS:
            client.write(_answer(fault, bare=method == b"HEAD"))
            await client.drain()
            return True
        upstream.write(head + (body if fault != "reset" or method == b"GET" else body[: len(body) // 2]))
        if fault == "reset" and method != b"GET" and body:
            await upstream.drain()
            _reset(client)
            return False
        answer = await upstream_reader.readuntil(b"\r\n\r\n")
        while answer.split(b" ", 2)[1].startswith(b"1"):
            answer = await upstream_reader.readuntil(b"\r\n\r\n")
        bare = method == b"HEAD" or answer.split(b" ", 2)[1] in (b"204", b"304")
        content = b"" if bare else await _body(upstream_reader, answer)
        if fault == "flip" and content:
            middle = len(content) // 2
            content, fault = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], None
        if content or not fault:
            client.write(answer + (content[: len(content) // 2] if fault else content))
            await client.drain()
        if fault == "reset":
            _reset(client)
        return not fault


def _answer(fault: str, bare: bool) -> bytes:
    """A store's error answer; to HEAD it has no body."""
    status, code, message = ANSWERS[fault]
    body = b"" if bare else b"<Error><Code>%s</Code><Message>%s</Message></Error>" % (code, message)
    return b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body that follows a head, as it came."""
    if _header(head, b"transfer-encoding") != b"chunked":
        return await reader.readexactly(int(_header(head, b"content-length") or 0))
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if size == 0:
            return body


def _reset(client: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    with contextlib.suppress(OSError):
        client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


@contextlib.contextmanager
def proxy(upstream: int, seed: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy before the server on the loopback port ``upstream``, for the block."""
    running = Proxy(upstream, seed, tls)
    try:
        yield running
    finally:
        running.stop()
