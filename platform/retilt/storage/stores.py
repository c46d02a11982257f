"""Which file system a URI means, and what its errors mean to a user.

File systems are built in the process that uses them: a pickled pyarrow S3FileSystem carries the secret key in clear
and loses its retries (apache/arrow#47348).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from retilt.storage.paths import is_local, local_path, scheme, within_store
from retilt.types import InputError, StorageError

S3_ATTEMPTS = 10
"""Of the client, for streams that cannot be repeated: a store that is gone is reported after one to two minutes."""
CONNECT_TIMEOUT = 5
REQUEST_TIMEOUT = 60
"""Seconds; pyarrow's own values (1, 3) fail on busy stores."""

attempts: ContextVar[int | None] = ContextVar("retilt_storage_attempts", default=None)
"""Of the S3 clients that ``resolve`` hands out, where not S3_ATTEMPTS."""

_REFUSED = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY|SIGNATURE|NOT_FOUND|\b40[134]\b")
_NETWORK = re.compile(r"AWS Error|google::cloud|curl|time[d ]*out|onnect", re.IGNORECASE)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def s3_place() -> tuple[str | None, str | None]:
    """(endpoint, region) of S3 from the environment; no endpoint means AWS, no region the bucket's."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return endpoint, region or ("us-east-1" if endpoint else None)


def s3_keys() -> tuple[str | None, ...]:
    """What of the environment a client keeps for good; part of what clients are cached by."""
    return tuple(os.environ.get(variable) for variable in _SECRETS)


@functools.cache
def _s3(bucket: str, place: tuple[str | None, str | None], keys: tuple[str | None, ...], times: tuple[int, ...]) -> Any:
    endpoint, region = place
    options: dict[str, Any] = {}
    if endpoint:
        split = urlsplit(endpoint)
        options = {"endpoint_override": split.netloc or split.path, "scheme": split.scheme or "https"}
    connect_timeout, request_timeout, most = times
    return pafs.S3FileSystem(
        region=region or pafs.resolve_s3_region(bucket),
        connect_timeout=connect_timeout,
        request_timeout=request_timeout,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=most),
        # A small file is then one request. Not for streams of several parts: where the first request fails, pyarrow
        # would still write an empty file when it destroys the stream.
        allow_delayed_open=most == 1,
        **options,
    )


@functools.cache
def _fsspec(protocol: str) -> Any:
    import fsspec

    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(protocol)))


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a URI and the path within it.

    Raises:
        InputError: unknown scheme, credentials in the URI.
    """
    kind = scheme(uri)
    if kind == "file":
        return pafs.LocalFileSystem(), local_path(uri)
    path = within_store(uri)
    if kind == "memory":
        return _fsspec("memory"), "/" + path.lstrip("/")
    with translated(uri, "opened"):
        if kind in ("s3", "s3a"):
            times = (CONNECT_TIMEOUT, REQUEST_TIMEOUT, attempts.get() or S3_ATTEMPTS)
            return _s3(path.split("/", 1)[0], s3_place(), s3_keys(), times), path
        if kind in ("gs", "gcs"):
            return pafs.GcsFileSystem(), path
        try:
            return _fsspec(kind), path
        except (ValueError, ImportError) as problem:
            raise InputError(f"{uri}: no file system for {kind}:// is installed") from problem


def plain(problem: object) -> str:
    """The message of an error on one line of at most 300 characters, without the secrets of the environment."""
    text = " ".join(str(problem).split())
    for variable in _SECRETS:
        if value := os.environ.get(variable):
            text = text.replace(value, "***")
    return text[:300]


def transient(uri: str, message: str) -> StorageError:
    """A StorageError that ``retried`` repeats."""
    # An attribute and no subclass, because errors cross to other processes by the name of their class.
    problem: Any = StorageError(f"{uri}: {message}")
    problem.transient = True
    return problem  # type: ignore[no-any-return]


def is_transient(problem: BaseException) -> bool:
    """Whether the same action may succeed a moment later."""
    return isinstance(problem, StorageError) and getattr(problem, "transient", False)


@contextlib.contextmanager
def translated(uri: str, action: str) -> Iterator[None]:
    """Raise what goes wrong inside as InputError (the file, the request) or StorageError (the store, the disk)."""
    try:
        yield
    except (InputError, StorageError):
        raise
    except FileNotFoundError as problem:
        raise InputError(f"{uri}: no such file or folder") from problem
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as problem:
        raise InputError(f"{uri}: cannot be {action}: {os.strerror(problem.errno or errno.EACCES)}") from problem
    except pa.ArrowException as problem:
        raise InputError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
    except OSError as problem:
        # Parquet's decoders report damaged data as an OSError without a number.
        damaged = problem.errno is None and not _NETWORK.search(str(problem))
        if damaged or (not is_local(uri) and _REFUSED.search(str(problem))):
            raise InputError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
        if is_local(uri) or problem.errno in _OURS:
            raise StorageError(f"{uri}: cannot be {action}: {plain(problem)}") from problem
        raise transient(uri, f"cannot be {action}: {plain(problem)}") from problem


def reading(uri: str) -> contextlib.AbstractContextManager[None]:
    """Translates errors of code that reads from an open file: InputError (the file), StorageError (the store)."""
    return translated(uri, "read")
