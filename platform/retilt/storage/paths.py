"""URIs as strings: what kind of place they name, and their parts. Nothing here touches a store."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from retilt.types import InputError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_QUERY = re.compile(r"\?[\w.-]+=")
"""Not a question mark alone, which is a wildcard."""


def scheme(uri: str) -> str:
    """``file``, ``s3``, ``gs``, ``memory``, …; ``file`` for plain paths."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else "file"


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine's file system."""
    return scheme(uri) == "file"


def is_s3(uri: str) -> bool:
    """Whether the URI names something in a store that speaks Amazon S3's protocol."""
    return scheme(uri) in ("s3", "s3a")


def local_path(uri: str) -> str:
    """The absolute path of a local URI; InputError for ``file://host/…``."""
    if not _SCHEME.match(uri):
        return os.path.abspath(os.path.expanduser(uri))
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri}: a file URI has three slashes, file:///folder/name")
    return os.path.abspath(unquote(uri.split("://", 1)[1].removeprefix("localhost")))


def absolute(uri: str) -> str:
    """The same place as an absolute path (local) or URI without a trailing slash."""
    return local_path(uri) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def parent(uri: str) -> str:
    """The URI of the folder that holds ``uri``."""
    return absolute(uri).rsplit("/", 1)[0] or "/"


def name(uri: str) -> str:
    """The last part of a URI."""
    return absolute(uri).rsplit("/", 1)[1]


def within_store(uri: str) -> str:
    """What follows the scheme of a remote URI, the bucket first: ``bucket/folder/name``.

    Raises:
        InputError: credentials or a query in the URI (which is not repeated), no bucket.
    """
    kind, path = scheme(uri), uri.split("://", 1)[1].rstrip("/")
    bucket = path.split("/", 1)[0]
    # A secret key may hold a slash; then what follows the bucket's colon holds the @.
    if "@" in bucket or (is_s3(uri) and ":" in bucket and "@" in path):
        raise InputError(f"a {kind}:// URI holds credentials; give them in the environment, never in a URI")
    if _QUERY.search(path):
        raise InputError(
            f"a {kind}:// URI ends in a query (?name=value); endpoint, region and credentials come from the "
            "environment (AWS_ENDPOINT_URL, AWS_REGION, …)"
        )
    if not bucket and kind != "memory":
        raise InputError(f"{uri}: no bucket; write {kind}://bucket/folder")
    return path
