"""Files on a server of this machine, as a publisher of data sets has them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the files in ``folder``."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def publish(place: Path, text: str, member: str | None) -> str:
    """Write ``text`` to ``place``, as ``member`` of a ZIP archive or as it is; returns its checksum."""
    if member is None:
        place.write_text(text)
        return f"sha256:{hashlib.sha256(place.read_bytes()).hexdigest()}"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return f"md5:{hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()}"
